"""Who decays now, and where their weights are: made anew whenever the membership changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decayprune.method.lifecycle import DECAYING, LifecycleState
from decayprune.method.live_weights import LiveWeights
from decayprune.structures import edits


@dataclass
class Members:
    """The structures that decay now."""

    ids: Tensor
    mask: Tensor
    """The same, bool, shape ``(S,)``."""
    carriers: edits.Pick
    """Their norm is held to the schedule."""
    shrinking: edits.Pick
    """They are scaled: the carriers, or all slices."""
    read: bool
    """Scaled lengths are read, not computed: a carrier may be a row of one and a column of another,
    and take both their factors; in half precision rounding moves them by more than training."""
    ages: Tensor
    """Every (age, span) among them, on the host, shape ``(2, n)``."""

    @classmethod
    def of(cls, state: LifecycleState, weights: LiveWeights, *, whole: bool) -> Members:
        """Those of a state.

        Args:
            state: Where every structure stands.
            weights: Of all structures.
            whole: All slices shrink, and not the carriers alone.
        """
        mask = state.phase == DECAYING
        carriers = weights.carriers(mask)
        shrinking = weights.every(mask) if whole else carriers
        cut_twice = len(set(shrinking.names)) < len(shrinking.names)
        read = (cut_twice and bool(carriers.blocks)) or weights.half
        ids = mask.nonzero().flatten()
        ages = torch.stack([state.age[ids], state.span[ids]]).cpu()
        if ages.numel():
            ages = torch.unique(ages, dim=1)
        return cls(ids, mask, carriers, shrinking, read, ages)
