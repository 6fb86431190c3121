"""Who leaves in DHSPG: the penalised set, what of it is caught, and what the target still lacks.

The Selector of :class:`~decayprune.hosts.otov2.dhspg.DHSPG`. The host looks at weights and
directions, penalises and catches; this file decides about sets of structures alone. Source: Chen et
al., OTOv2, arXiv 2303.06862, for the partition; the rest is ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.hosts.otov2.penalty import partition
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.method.selector import Selection
from decayprune.selection.target import Target, lowest_first, rank_within


class DhspgSelector:
    """Lets caught structures decay, and looks after who is penalised.

    Args:
        group_of: Group of each structure, shape ``(S,)``.
        cost: Of the widths.
        budget: What remains at the end; None: ``sparsity`` counts.
        sparsity: Share of the structures to prune, without a budget.
        tolerance: How many more than needed are penalised, as a share of all.
        divisible: Keep a multiple of it in each group.
        stop_step: Step at which whatever the target still lacks is enrolled, and the last one at
            which the released are replaced.
        extra: How many more are enrolled then, as a share of them.
        device: Of the weights.

    Attributes:
        target: At the end.
        members: Who is penalised, bool, shape ``(S,)``, on the device.
        drawn: Whether the partition has been made.
    """

    def __init__(
        self,
        group_of: Tensor,
        cost: CostModel,
        *,
        budget: Budget | None,
        sparsity: float,
        tolerance: float,
        divisible: int,
        stop_step: int,
        extra: float,
        device: torch.device,
    ) -> None:
        self._group_of, self._cost, self._budget = group_of, cost, budget
        self._sparsity, self._tolerance, self._divisible = sparsity, tolerance, divisible
        self._stop_step, self._extra = stop_step, extra
        # The target is met when at least this share is zero, so it rounds up.
        quota = math.ceil(sparsity * group_of.numel() - 1e-9)
        most = partition(
            torch.arange(group_of.numel(), device="cpu"), group_of, cost.sizes, divisible
        )
        target = Target(
            group_of=group_of,
            cost=cost,
            met=lambda kept: int((cost.sizes - kept).sum()) >= quota,
            floor=cost.sizes - most,
            unit=torch.full_like(cost.sizes, divisible),
        )
        self.target = target if budget is None else target.within(budget)
        self.members = torch.zeros(group_of.numel(), dtype=torch.bool, device=device)
        self.drawn = False
        self._caught: Tensor | None = None
        self._nearness: Tensor | None = None

    # ---------------------------------------------------------------- what the host tells

    def draw(self, saliency: Tensor, state: LifecycleState) -> None:
        """Make the partition, once.

        Args:
            saliency: The highest go, shape ``(S,)``.
            state: With the scores of this moment.
        """
        order = torch.sort(saliency, descending=True, stable=True).indices.cpu()
        group_of, sizes = self._group_of, self._cost.sizes
        place = torch.empty_like(order)  # among its group, the most redundant first
        place[order] = rank_within(torch.arange(order.numel(), device="cpu"), group_of[order])

        def counts(number: int) -> Tensor:
            return partition(order[:number], group_of, sizes, self._divisible)

        total = order.numel()
        need = bisect_left(range(total), True, key=lambda n: self.target.met(sizes - counts(n)))
        if self._budget is None:
            wanted = int(total * min(self._sparsity + self._tolerance, 0.999))
        else:
            wanted = min(need + int(total * self._tolerance), int(total * 0.999))
        self._become((place < counts(max(need, wanted))[group_of]).nonzero().flatten(), state)
        self.drawn = True

    def note(self, caught: Tensor | None, nearness: Tensor | None) -> None:
        """What the half-space test of this step found.

        Args:
            caught: Structures, ascending; None if nothing was tested.
            nearness: How near each is to being caught, the lowest first, shape ``(S,)``, or None.
        """
        self._caught, self._nearness = caught, nearness

    # ---------------------------------------------------------------- the protocol

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Selection | None:
        """What the half-space test caught; at ``stop_step`` also what is still missing."""
        ended = None
        if released and step <= self._stop_step:
            ended = self._replace_released(state, step)
        if self._caught is None:
            return None if ended is None else Selection(state.decaying[:0], cooldowns_ended=ended)
        ids = self._spared(self._caught.cpu(), state)
        if step >= self._stop_step:
            ids = self._with_missing(ids, state)
        if step == self._stop_step:
            ids = self._with_extra(ids, state, step)
        return Selection(ids.to(state.phase.device), cooldowns_ended=ended)

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Those of ``ids``, the first preferred, that may be released with the target still met."""
        return self.target.releasable(ids.cpu(), self._kept(state)).to(ids.device)

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the structures that decay or are pruned meet the target."""
        return self.drawn and self.target.met(self._kept(state))

    # ---------------------------------------------------------------- who is penalised

    def _replace_released(self, state: LifecycleState, step: int) -> Tensor:
        """Move released structures out and the next best ones in.

        Returns:
            Structures whose cool-down was cut short because nothing else was left.
        """
        cooling, penalised = state.cooling(step).cpu(), self.members.cpu()
        leaving = int((penalised & cooling).sum())
        penalised &= ~cooling
        going = penalised | state.committed.cpu()
        order = lowest_first(~going, state.score.cpu())
        oldest = lowest_first(cooling, state.cool_until.cpu())
        kept = self._cost.keep_counts(going)
        if self._budget is None:  # as many as were released, for the target is a number of them
            needed = self.target.needed(order, kept, oldest)
            as_many = self.target.leading(order[~cooling[order]], kept, leaving)
            chosen = max(as_many, needed, key=torch.numel)
        else:
            chosen = self.target.fitting(order, kept, oldest)
        self._become(penalised.index_fill(0, chosen, True).nonzero().flatten(), state)
        return chosen[cooling[chosen] & self.members.cpu()[chosen]]

    def _become(self, ids: Tensor, state: LifecycleState) -> None:
        # With a tolerance, more are penalised than needed, and the first that are caught go.
        ids = ids if self._tolerance else self._spared(ids, state)
        self.members = torch.zeros_like(self.members).index_fill(
            0, ids.to(self.members.device), True
        )

    # ---------------------------------------------------------------- who is enrolled

    def _spared(self, ids: Tensor, state: LifecycleState) -> Tensor:
        """Penalised or caught ones, without the best of them that a budget can spare."""
        if self._budget is None:
            return ids
        free = torch.zeros_like(self.members, device="cpu").index_fill(0, ids, True)
        best = lowest_first(free & ~state.committed.cpu(), -state.score.cpu())
        back = self.target.releasable(best, self._kept(state, ids))
        return ids[~torch.isin(ids, back)]

    def _with_missing(self, ids: Tensor, state: LifecycleState) -> Tensor:
        """The caught ones and, nearest to being caught first, as many more as the target lacks."""
        nearness = state.score if self._nearness is None else self._nearness
        rest = (self.members & (state.phase == ACTIVE)).cpu().index_fill(0, ids, False)
        order, kept = lowest_first(rest, nearness.cpu()), self._kept(state, ids)
        more = self.target.needed if self._budget is None else self.target.fitting
        return torch.cat([ids, more(order, kept)])

    def _with_extra(self, ids: Tensor, state: LifecycleState, step: int) -> Tensor:
        """What is enrolled at the last moment and, by score, what a tournament adds to it."""
        rest = ((state.phase == ACTIVE) & ~state.cooling(step)).cpu()
        order = lowest_first(rest, state.score.cpu())
        # Rounded down, for among a few a dear one would stay while cheap ones come back, and the
        # budget would not be spent.
        return self.target.enrolled(ids, order, self._kept(state), self._extra, math.floor)

    # ---------------------------------------------------------------- bookkeeping

    def _kept(self, state: LifecycleState, ids: Tensor | None = None) -> Tensor:
        """Structures left in each group, without some more."""
        committed = state.committed.cpu()
        return self._cost.keep_counts(
            committed if ids is None else committed.index_fill(0, ids, True)
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, what is noted anew at each step apart."""
        return {"penalised": self.members.clone(), "partitioned": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.members = state["penalised"].to(self.members.device).clone()
        self.drawn = bool(state["partitioned"])
