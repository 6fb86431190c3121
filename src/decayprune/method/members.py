"""Who decays now, and where their weights are: made anew whenever the membership changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decayprune.method.lifecycle import DECAYING, PRUNED, LifecycleState
from decayprune.method.live_weights import LiveWeights
from decayprune.structures import edits


@dataclass
class Members:
    """The structures that decay now."""

    phase: Tensor
    """Of all structures, on the host, shape ``(S,)``."""
    ids: Tensor
    """Who decays, ascending, on the host, shape ``(n,)``."""
    mask: Tensor
    """The same on the device, bool, shape ``(S,)``."""
    carriers: edits.Pick
    """Their norm is held to the schedule."""
    shrinking: edits.Pick
    """They are scaled: the carriers, or all slices."""
    read: bool
    """Scaled lengths are read, not computed: a carrier may be a row of one and a column of another,
    and take both their factors; in half precision rounding moves them by more than training."""
    ages: Tensor
    """Age and span of each, on the host, which counts along, shape ``(2, n)``."""
    short: Tensor
    """Who began too short for its dtype and has nothing to lose, on the host, shape ``(n,)``."""
    settled: bool = False
    """They have taken a step that changed nothing about them, and so located all that it reads."""

    @classmethod
    def of(
        cls,
        state: LifecycleState,
        weights: LiveWeights,
        *,
        whole: bool,
        carriers: edits.Pick | None = None,
    ) -> Members:
        """Those of a state; the device is waited for once.

        Args:
            state: Where every structure stands.
            weights: Of all structures.
            whole: All slices shrink, and not the carriers alone.
            carriers: Theirs, if they were located before.
        """
        begun = state.start_length.float().view(torch.int32)
        read = torch.stack([state.phase.int(), state.age, state.span, begun]).cpu()
        phase, chosen = read[0].to(state.phase.dtype), read[0] == DECAYING
        ids = chosen.nonzero().flatten()
        if carriers is None:
            carriers = weights.carriers(chosen)
        shrinking = weights.every(chosen) if whole else carriers
        cut_twice = len(set(shrinking.names)) < len(shrinking.names)
        return cls(
            phase=phase,
            ids=ids,
            mask=state.phase == DECAYING,
            carriers=carriers,
            shrinking=shrinking,
            read=(cut_twice and bool(carriers.blocks)) or weights.half,
            ages=read[1:3, ids],
            short=read[3].view(torch.float32)[ids] < torch.finfo(torch.float32).tiny,
        )

    @property
    def pruned(self) -> Tensor:
        """Who is zero for good, bool, on the host, shape ``(S,)``."""
        return self.phase == PRUNED
