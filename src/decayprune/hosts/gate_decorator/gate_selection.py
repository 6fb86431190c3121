"""Which gates close: at the end of every tick, and in place of what was released.

The Selector of :class:`~decayprune.hosts.gate_decorator.host.GateDecorator`. A tick closes what the
published procedure closes; whatever is released later is replaced at once, so that what the ticks
have reached stays reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.hosts.gate_decorator.ticks import TickTock, closing
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.method.rectify import Rectify
from decayprune.method.selector import Selection
from decayprune.selection.target import Target, lowest_first
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
        self._schedule, self._gates, self._decay_steps = schedule, gates, decay_steps
        self._extra = rectify.verdict.extra_share(decay_steps) if rectify else 0.0
        self._target = Target(
            group_of=structures.group_of,
            cost=cost,
            met=self._met,
            floor=least,
            unit=torch.ones_like(least),
        )
        self.score = torch.zeros(structures.num_structures, device="cpu")
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
    ) -> Selection | None:
        """What a tick closes at its end; replacements where something was released."""
        phase = self._schedule.phase(step)
        ends = phase.tick and phase.last and not self.reached
        if not (ends or released):
            return None
        first = self._replacements(state, step)
        kept = self._kept(state) - self._target.count(first)
        if ends and not self._cost.meets(self._budget, kept):
            return self._close(state, step, first)
        if not self._cost.meets(self._budget, self.planned):
            self._plan(kept, step)  # a replacement may happen to save more
        ended = first[state.cooling(step).cpu()[first]]
        return Selection(first.to(state.phase.device), cooldowns_ended=ended)

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Those of ``ids`` that may be released with what the ticks have reached still reached."""
        return self._target.releasable(ids.cpu(), self._kept(state)).to(ids.device)

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the budget holds with all commitments."""
        return self._cost.meets(self._budget, self._kept(state))

    def _kept(self, state: LifecycleState) -> Tensor:
        return self._cost.keep_counts(state.committed.cpu())

    def _met(self, kept: Tensor) -> bool:
        if self._cost.meets(self._budget, kept):
            return True
        return self._cost.macs(kept) <= self._cost.macs(self.planned) and not self._cost.meets(
            self._budget, self.planned
        )

    def _close(self, state: LifecycleState, step: int, first: Tensor) -> Selection:
        alive = (state.phase == ACTIVE).cpu().index_fill(0, first, False)
        asleep = state.cooling(step).cpu()
        cooling = asleep.index_fill(0, first, False)
        eligible = alive & ~cooling
        score = torch.where(eligible, self.score.to(state.score.dtype), state.score.cpu())
        before = self._kept(state)
        chosen = closing(
            score,
            alive,
            eligible,
            self._gates,
            self._structures.group_of,
            self._target.floor,
            self._schedule.share,
        )
        if self._schedule.stop is not None:
            others = lowest_first(eligible.index_fill(0, chosen, False), score)
            oldest = lowest_first(cooling, state.cool_until.cpu())
            now = before - self._target.count(first)
            order = torch.cat([chosen, others, oldest])
            chosen = self._in_time(step, now, chosen, order, oldest)
        closed = torch.cat([first, chosen])
        self._plan(before - self._target.count(closed), step)
        rest = lowest_first(eligible.index_fill(0, chosen, False), score)
        ids = self._target.enrolled(closed, rest, before, self._extra)
        return Selection(ids.to(state.phase.device), score, closed[asleep[closed]])

    def _in_time(
        self, step: int, now: Tensor, chosen: Tensor, order: Tensor, oldest: Tensor
    ) -> Tensor:
        """More than a tick's share where the pace needs it, and no more than the budget needs."""
        pace = self._target.within(self._budget.after(self._schedule.progress(step)))
        end = self._target.within(self._budget)
        if not pace.met(now - pace.count(chosen)):
            chosen = pace.shortest(order, now, oldest)
        if end.met(now - end.count(chosen)):
            return end.fitting(order, now, oldest)
        return chosen

    def _plan(self, kept: Tensor, step: int) -> None:
        """Hold these widths from now on; if they meet the budget, this is the end of releases."""
        self.planned = kept
        if self._cost.meets(self._budget, kept):
            self.last_release = step + self._decay_steps

    def _replacements(self, state: LifecycleState, step: int) -> Tensor:
        """In place of what was released: the lowest scores, then the longest released."""
        active, cooling = (state.phase == ACTIVE).cpu(), state.cooling(step).cpu()
        order = lowest_first(active, state.score.cpu())
        oldest = lowest_first(cooling, state.cool_until.cpu())
        return self._target.fitting(order, self._kept(state), oldest)

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
