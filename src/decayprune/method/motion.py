"""What a decaying step does to tensors, as functions that a device can be given whole.

Shapes are those of all structures and never change, nothing branches on a value, and nothing is
asked of the device: :func:`account` and :func:`shrink_` can be traced without a break, and once
for as long as the same structures decay. Between them the host decides who is released and picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from decayprune.method import lifecycle, rectify
from decayprune.method.decay import Curve, scale_factors, step_factors, target_length
from decayprune.method.lifecycle import LifecycleState
from decayprune.structures import edits


class Way(NamedTuple):
    """How lengths go down."""

    curve: Curve
    """Norm over the decay."""
    hold: bool
    """Norms are held to the schedule, and not only multiplied by its step ratio."""

    def factors(self, state: LifecycleState, moving: Tensor, length: Tensor) -> Tensor:
        """What takes those who move from their length now to the next age's; else 1, ``(S,)``."""
        span, age = state.span.clamp(min=1), state.age + 1
        if self.hold:
            target = target_length(state.start_length, age, span, self.curve)
            factors = scale_factors(length, target)
        else:
            factors = step_factors(age.clamp(min=1), span, self.curve).to(length.dtype)
        return torch.where(moving, factors, 1.0)


def resistance(state: LifecycleState, along: Tensor) -> Tensor:
    """``-<g, w> / ||w||`` at the weights that the step started from, shape ``(S,)``."""
    length = state.length
    return torch.where(length > 0, -along / length.clamp(min=1e-38), 0.0)


def all_finite(mask: Tensor, length: Tensor, resisted: Tensor | None) -> Tensor:
    """Whether all lengths and resistances of those who decay are finite, bool, shape ``()``."""
    watched = length if resisted is None else length + resisted
    # What is not finite times 0 is not 0; isfinite().all() would take two kernels more.
    return (torch.where(mask, watched, 0.0) * 0).sum() == 0


def account(
    state: LifecycleState,
    moving: Tensor,
    length: Tensor,
    resisted: Tensor | None,
    shrunk: Tensor | float,
    way: Way,
) -> tuple[LifecycleState, Tensor]:
    """The state with the statistics of an optimizer step, and the factors that follow it.

    Args:
        state: The state before.
        moving: Who decays, bool, shape ``(S,)``.
        length: Norms of their carriers after the optimizer's step, shape ``(S,)``.
        resisted: Their :func:`resistance`; None: nobody watches.
        shrunk: Length that weight decay alone took, shape ``(S,)`` or 0.
        way: How lengths go down.
    """
    factors = way.factors(state, moving, length)
    if resisted is None:
        return state, factors
    before = state.length
    statistics = rectify.observe(
        state.statistics,
        moving,
        resistance=resisted,
        given=length - before + shrunk,
        taken=before - length * factors,
    )
    return replace(state, statistics=statistics), factors


def shrink_(
    state: LifecycleState,
    moving: Tensor,
    length: Tensor,
    factors: Tensor,
    shrinking: edits.Pick,
    parameters: Mapping[str, Tensor],
    read: edits.Pick | None = None,
) -> LifecycleState:
    """Scale the slices, in place, and give the state one step of age later.

    Args:
        state: The state before.
        moving: Who decays, bool, shape ``(S,)``.
        length: Norms of their carriers, shape ``(S,)``.
        factors: Of :func:`account`, shape ``(S,)``.
        shrinking: Slices that are scaled.
        parameters: By name.
        read: Carriers whose scaled norms are read; None: they follow from the factors.
    """
    state = lifecycle.tick(state, moving)
    edits.scale_(shrinking, parameters, factors)
    after = length * factors if read is None else edits.squares(read, parameters).sqrt()
    after = after.to(state.length.dtype)
    return replace(state, length=torch.where(moving, after, state.length))
