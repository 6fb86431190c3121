"""Who leaves in HESSO: at the start of each period the lowest scores, later their replacements.

The Selector of :class:`~decayprune.hosts.otov2.hesso.HESSO`. The host looks at weights and
directions when a period opens; this file decides about sets of structures alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.method.rectify import Rectify
from decayprune.method.selector import Selection
from decayprune.selection.target import Target, lowest_first


@dataclass(frozen=True, kw_only=True)
class Periods:
    """When periods begin, in optimizer steps.

    Attributes:
        start: Steps before the first.
        length: Steps of each.
        count: How many there are.
    """

    start: int
    length: int
    count: int

    def begun(self, step: int) -> int:
        """Periods that have begun once this step is over."""
        return max(0, min(self.count, (step - self.start - 1) // self.length + 1))

    def opens(self, step: int) -> bool:
        """Whether a period begins with this step."""
        return self.begun(step) > self.begun(step - 1)

    @property
    def end(self) -> int:
        """The last step of the last period."""
        return self.start + self.length * self.count


class HessoSelector:
    """Picks the lowest scores when a period opens, and replaces what is released.

    Args:
        group_of: Group of each structure, shape ``(S,)``.
        cost: Of the widths.
        periods: When they begin.
        budget: What remains at the end; None: ``sparsity`` counts.
        sparsity: Share of the structures to prune, without a budget.
        divisible: Keep a multiple of it in each group.
        rectify: What its tournament picks on top.
        decay_steps: ``N``.

    Attributes:
        target: That of the last period.
        scores: Of this moment if a period opens, shape ``(S,)``; else None.
    """

    def __init__(
        self,
        group_of: Tensor,
        cost: CostModel,
        periods: Periods,
        *,
        budget: Budget | None,
        sparsity: float,
        divisible: int,
        rectify: Rectify | None,
        decay_steps: int,
    ) -> None:
        self._cost, self._periods, self._budget = cost, periods, budget
        self._rectify, self._decay_steps = rectify, decay_steps
        self._quota = int(group_of.numel() * min(sparsity, 0.999))
        unit = torch.full_like(cost.sizes, divisible)
        self._widths = Target(
            group_of=group_of,
            cost=cost,
            met=lambda kept: True,
            floor=torch.minimum(unit, cost.sizes),
            unit=unit,
        )
        self.target = self._target_of(periods.count)
        self.scores: Tensor | None = None

    def _target_of(self, begun: int) -> Target:
        """The target once so many periods have begun."""
        if begun == 0:
            return self._widths
        if self._budget is not None:
            return self._widths.within(self._budget.after(begun / self._periods.count))
        # The remainder of the division falls to the last period.
        last = begun == self._periods.count
        share = self._quota if last else begun * (self._quota // self._periods.count)
        return self._widths.until(lambda kept: int((self._cost.sizes - kept).sum()) >= share)

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Selection | None:
        """The lowest scores at the start of a period; replacements of what was released."""
        if self.scores is None and not released:
            return None
        active, cooling = (state.phase == ACTIVE).cpu(), state.cooling(step).cpu()
        score, fresh, extra = state.score.cpu(), None, 0.0
        if self.scores is not None:
            # Frozen from the pick to the end of a cool-down: a score sinks with the norm.
            score = torch.where(active & ~cooling, self.scores.cpu().to(score), score)
            fresh, extra = score, self._extra(step)
        order = lowest_first(active, score)
        oldest = lowest_first(cooling, state.cool_until.cpu())
        kept, target = self._cost.keep_counts(~active), self._target_of(self._periods.begun(step))
        if extra:
            ids = target.shortest(order, kept, oldest)
            ids = target.enrolled(ids, order[~cooling[order]], kept, extra)
        elif self._budget is not None:
            ids = target.fitting(order, kept, oldest)
        else:  # a number of structures, and these are the lowest
            ids = target.needed(order, kept, oldest)
        return Selection(ids, fresh, ids[cooling[ids]])

    def _extra(self, step: int) -> float:
        if self._rectify is None:
            return 0.0
        return self._rectify.verdict.extra_share(self._decay_steps, self._periods.end - 1 - step)

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Those of ``ids``, the first preferred, that may be released with the target still met."""
        # A period that begins with this very step picks afterwards what it needs.
        target = self._target_of(self._periods.begun(step - 1))
        kept = self._cost.keep_counts(state.committed.cpu())
        return target.releasable(ids.cpu(), kept).to(ids.device)

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the last period has begun and its target holds, commitments counted."""
        last = self._periods.begun(step) == self._periods.count
        return last and self.target.met(self._cost.keep_counts(state.committed.cpu()))
