"""Which gates close: at the end of every tick, and in place of what was released.

The Selector of :class:`~decayprune.hosts.gate_decorator.host.GateDecorator`. A tick closes what the
published procedure closes; whatever is released later is replaced at once, so that what the ticks
have reached stays reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.hosts.gate_decorator.ticks import TickTock, closing
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.method.rectify import Rectify, extra_share
from decayprune.method.selector import Picks
from decayprune.selection.target import Met, affordable, fitting, refill
from decayprune.structures.structure_map import StructureMap

NEVER = 2**31 - 1


class GateSelector:
    """Closes gates tick by tick until a budget holds.

    Args:
        structures: What can be pruned.
        cost: What remains costs.
        budget: Upper bounds on it.
        schedule: When ticks end, and how much each closes.
        rectify: Its tournament enrols more than a tick closes.
        gates: How many gates each structure has, shape ``(S,)``.
        least: Structures of each group that stay in any case, shape ``(G,)``.
        decay_steps: How long a gate takes to close.

    Attributes:
        score: Sum of ``|g * dL/dg|`` over the tick so far, shape ``(S,)``.
        planned: Structures kept in each group according to the ticks so far, shape ``(G,)``.
        last_release: Step before which gates may be released: the last ones to close still may,
            what replaces them may not, or there would be no end.
    """

    def __init__(
        self,
        structures: StructureMap,
        cost: CostModel,
        budget: Budget,
        schedule: TickTock,
        rectify: Rectify | None,
        gates: Tensor,
        least: Tensor,
        decay_steps: int,
    ) -> None:
        self._structures, self._cost, self._budget = structures, cost, budget
        self._schedule, self._rectify = schedule, rectify
        self._gates, self._least, self._decay_steps = gates, least, decay_steps
        self.score = torch.zeros(structures.num_structures)
        self.planned = cost.sizes
        self.last_release = NEVER

    @property
    def reached(self) -> bool:
        """Whether ticks have reached the budget: decays may go on, ticks and tocks do not."""
        return self.last_release < NEVER

    def collect(self, step: int, noted: Tensor) -> None:
        """Add the scores of one optimizer step to those of its tick.

        Args:
            step: The optimizer step.
            noted: ``|g * dL/dg|`` summed over a structure's gates, shape ``(S,)``.
        """
        phase = self._schedule.phase(step)
        if phase.tick:
            self.score = noted if phase.position == 0 else self.score + noted

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Picks | None:
        """What a tick closes at its end; replacements where something was released."""
        phase = self._schedule.phase(step)
        ends = phase.tick and phase.last and not self.reached
        if not (ends or released):
            return None
        first, warmed = self._refill(state, step)
        kept = self._kept(state) - self._count(first)
        if ends and not self._cost.meets(self._budget, kept):
            return self._close(state, step, first)
        if not self._cost.meets(self._budget, self.planned):
            self._plan(kept, step)  # a replacement may happen to save more
        return Picks(first.to(state.phase.device), warmed=warmed)

    def spare(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Which of ``ids`` may be released with what the ticks have reached still reached."""
        groups = self._structures.group_of
        return affordable(ids.cpu(), self._kept(state), groups, self._met).to(ids.device)

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the budget holds with all commitments."""
        return self._cost.meets(self._budget, self._kept(state))

    def _kept(self, state: LifecycleState) -> Tensor:
        return self._cost.keep_counts(state.committed.cpu())

    def _count(self, ids: Tensor) -> Tensor:
        return torch.bincount(self._structures.group_of[ids], minlength=self._least.numel())

    def _met(self, kept: Tensor) -> bool:
        if self._cost.meets(self._budget, kept):
            return True
        return self._cost.macs(kept) <= self._cost.macs(self.planned) and not self._cost.meets(
            self._budget, self.planned
        )

    def _close(self, state: LifecycleState, step: int, first: Tensor) -> Picks:
        alive = (state.phase == ACTIVE).cpu().index_fill(0, first, False)
        cooling = state.cooling(step).cpu().index_fill(0, first, False)
        eligible = alive & ~cooling
        score = torch.where(eligible, self.score.to(state.score.dtype), state.score.cpu())
        now = self._kept(state) - self._count(first)
        chosen = closing(
            score,
            alive,
            eligible,
            self._gates,
            self._structures.group_of,
            self._least,
            self._schedule.share,
        )
        if self._schedule.stop is not None:
            others = _sorted(eligible.index_fill(0, chosen, False), score)
            others = torch.cat([others, _sorted(cooling, state.cool_until.cpu())])
            chosen = self._in_time(step, now, chosen, others)
        self._plan(now - self._count(chosen), step)
        closed = torch.cat([first, chosen])
        extra = self._extra(eligible.index_fill(0, chosen, False), score, closed.numel())
        warmed = closed[state.cooling(step).cpu()[closed]]
        return Picks(
            torch.cat([closed, extra]).to(state.phase.device),
            score,
            warmed if warmed.numel() else None,
        )

    def _in_time(self, step: int, now: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
        """More than a tick's share where the pace needs it, and no more than the budget needs."""
        order = torch.cat([chosen, others])
        pace = self._budget.after(self._schedule.progress(step))
        if not self._cost.meets(pace, now - self._count(chosen)):
            chosen = self._shortest(order, now, lambda kept: self._cost.meets(pace, kept))
        if self._cost.meets(self._budget, now - self._count(chosen)):
            return self._fitting(order, now, lambda kept: self._cost.meets(self._budget, kept))
        return chosen

    def _shortest(self, order: Tensor, now: Tensor, met: Met) -> Tensor:
        return refill(order, now, self._least, self._structures.group_of, met)

    def _fitting(self, order: Tensor, now: Tensor, met: Met) -> Tensor:
        return fitting(
            order,
            now,
            self._structures.group_of,
            met,
            self._cost.macs,
            lambda order: self._shortest(order, now, met),
        )

    def _plan(self, kept: Tensor, step: int) -> None:
        """Hold these widths from now on; if they meet the budget, this is the end of releases."""
        self.planned = kept
        if self._cost.meets(self._budget, kept):
            self.last_release = step + self._decay_steps

    def _extra(self, eligible: Tensor, score: Tensor, needed: int) -> Tensor:
        """What a tournament enrols beyond what a tick closes."""
        wanted = math.ceil(extra_share(self._rectify, self._decay_steps) * needed)
        left, planned = _sorted(eligible, score), self.planned

        def enough(kept: Tensor) -> bool:
            return int((planned - kept).sum()) >= wanted

        return self._shortest(left, planned, enough)

    def _refill(self, state: LifecycleState, step: int) -> tuple[Tensor, Tensor | None]:
        """Replacements for what was released: the lowest scores, then the longest released."""
        free, cool = (state.phase == ACTIVE).cpu(), state.cool_until.cpu()
        ready, waiting = free & (cool < step), free & (cool >= step)
        order = torch.cat([_sorted(ready, state.score.cpu()), _sorted(waiting, cool)])
        ids = self._fitting(order, self._kept(state), self._met)
        warmed = ids[cool[ids] >= step]
        return ids, warmed if warmed.numel() else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "score": self.score.clone(),
            "planned": self.planned.clone(),
            "last_release": self.last_release,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.score, self.planned = state["score"].cpu().clone(), state["planned"].cpu().clone()
        self.last_release = int(state["last_release"])


def _sorted(mask: Tensor, by: Tensor) -> Tensor:
    """Where a mask is true, the lowest value in front."""
    ids = mask.nonzero().flatten()
    return ids[torch.sort(by[ids], stable=True).indices]
