"""Ends at the budget, not somewhere below it, so that the two runs of a pair cost the same.

The ranking's shortest prefix that meets a budget may overshoot by all that its last structure
costs: one channel of a residual stage is 4 % of a small network's MACs. :class:`Snug` gives back
what was not needed, and when structures are released passes over those that no longer fit instead
of stopping at the first one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from decayprune.lifecycle import LifecycleState
from decayprune.selection import ImportanceSelector, Picks


class Snug:
    """An importance selector that wastes nothing of its budget.

    Args:
        selector: Ranks; its rounds and limits stay.
    """

    def __init__(self, selector: ImportanceSelector) -> None:
        self._selector = selector
        self._extra = selector._extra

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Picks | None:
        """The selector's picks without those, from the last on, that the budget can spare."""
        picks = self._selector.select(state, step, parameters, released=released)
        new_round = self._selector._schedule.rounds_begun(step) > (
            self._selector._schedule.rounds_begun(step - 1)
        )
        if picks is None or (self._extra and new_round):
            return picks  # what a tournament enrols beyond the need is given back by its verdict
        committed = state.committed.clone()
        committed[picks.ids] = True
        spared = self._fitting(committed, step, picks.ids.flip(0))
        keep = ~torch.isin(picks.ids, spared)
        warmed = picks.warmed
        if warmed is not None:
            warmed = warmed[~torch.isin(warmed, spared.to(warmed.device))]
        return Picks(picks.ids[keep], picks.scores, warmed)

    def spare(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Those of ``ids`` that may be released, the first ones preferred."""
        return self._fitting(state.committed, step, ids)

    def done(self, state: LifecycleState, step: int) -> bool:
        """As the selector does."""
        return self._selector.done(state, step)

    def _fitting(self, committed: Tensor, step: int, ids: Tensor) -> Tensor:
        """Of structures committed to leave, those that may stay with the budget still met."""
        inner = self._selector
        limits = inner._limits(step)
        if limits is None:
            return ids
        kept = inner._cost.keep_counts(committed.cpu())
        groups = inner._structures.group_of[ids.cpu()].tolist()
        full: set[int] = set()  # groups one more of which does not fit; later it fits even less
        fits = []
        for position, group in enumerate(groups):
            if group in full:
                continue
            kept[group] += 1
            if inner._cost.meets(limits, kept):
                fits.append(position)
            else:
                kept[group] -= 1
                full.add(group)
        return ids[torch.tensor(fits, dtype=torch.int64, device=ids.device)]
