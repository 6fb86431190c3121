"""The control that asks whether resistance means anything: release at random instead.

:class:`RandomRelease` wraps a selector. The structures that a tournament judges, the moment, and
the budget stay as they are; only the order in which they are spared is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from decayprune import Picks, Selector
from decayprune.lifecycle import LifecycleState


class RandomRelease:
    """A selector that spares random ones of the structures it is asked about.

    Args:
        selector: Selects, and says how many may be spared.
        seed: What the draws follow from.
    """

    def __init__(self, selector: Selector, seed: int) -> None:
        self._selector, self._seed = selector, seed

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Picks | None:
        """As the selector does."""
        return self._selector.select(state, step, parameters, released=released)

    def spare(self, state: LifecycleState, step: int, ids: Tensor) -> int | Tensor:
        """As many random ones as the budget allows."""
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + step)
        order = torch.randperm(ids.numel(), generator=generator).to(ids.device)
        allowed = self._selector.spare(state, step, ids[order])
        return ids[order][:allowed] if isinstance(allowed, int) else allowed

    def done(self, state: LifecycleState, step: int) -> bool:
        """As the selector does."""
        return self._selector.done(state, step)
