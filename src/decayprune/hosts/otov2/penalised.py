"""The penalised set of DHSPG: who is in it, who takes the place of the released, what is missing.

The host looks at weights and directions, penalises and catches; this file decides about sets of
structures alone. Source: Chen et al., OTOv2, arXiv 2303.06862, for the partition; the rest is ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.hosts.otov2.penalty import partition
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.selection.target import Met, affordable, fitting, rank_within, refill


class PenalisedSet:
    """Who is penalised, and who else has to go for the target.

    Args:
        group_of: Group of each structure, shape ``(S,)``.
        cost: Of the widths.
        budget: What remains at the end; None: ``target`` counts.
        met: Whether the target holds at some widths.
        target: Share of the structures to prune, without a budget.
        tolerance: How many more than needed are penalised, as a share of all.
        divisible: Keep a multiple of it in each group.
        device: Of the weights.

    Attributes:
        members: Bool, shape ``(S,)``, on the device.
        drawn: Whether the partition has been made.
        floor: How many of each group stay in any case, shape ``(G,)``.
    """

    def __init__(
        self,
        group_of: Tensor,
        cost: CostModel,
        budget: Budget | None,
        met: Met,
        *,
        target: float,
        tolerance: float,
        divisible: int,
        device: torch.device,
    ) -> None:
        self._group_of, self._cost, self._budget, self._met = group_of, cost, budget, met
        self._target, self._tolerance, self._divisible = target, tolerance, divisible
        self.members = torch.zeros(group_of.numel(), dtype=torch.bool, device=device)
        self.drawn = False
        most = partition(torch.arange(group_of.numel()), group_of, cost.sizes, divisible)
        self.floor = cost.sizes - most

    # ---------------------------------------------------------------- who is penalised

    def draw(self, saliency: Tensor, state: LifecycleState) -> None:
        """Make the partition, once.

        Args:
            saliency: The highest go, shape ``(S,)``.
            state: With the scores of this moment.
        """
        order = torch.sort(saliency, descending=True, stable=True).indices.cpu()
        group_of, sizes = self._group_of, self._cost.sizes
        place = torch.empty_like(order)  # among its group, the most redundant first
        place[order] = rank_within(torch.arange(order.numel()), group_of[order])

        def counts(number: int) -> Tensor:
            return partition(order[:number], group_of, sizes, self._divisible)

        total = order.numel()
        need = bisect_left(range(total), True, key=lambda n: self._met(sizes - counts(n)))
        if self._budget is None:
            wanted = int(total * min(self._target + self._tolerance, 0.999))
        else:
            wanted = min(need + int(total * self._tolerance), int(total * 0.999))
        self._become((place < counts(max(need, wanted))[group_of]).nonzero().flatten(), state)
        self.drawn = True

    def replace_released(self, state: LifecycleState, step: int) -> Tensor | None:
        """Move released structures out and the next best ones in.

        Args:
            state: After the releases.
            step: Number of the optimizer step.

        Returns:
            Structures whose cool-down was cut short because nothing else was left, or None.
        """
        cooling, penalised = state.cooling(step).cpu(), self.members.cpu()
        leaving = int((penalised & cooling).sum())
        penalised &= ~cooling
        going = penalised | state.committed.cpu()
        # Fresh ones by score; then those that cool down, the longest out of the game first.
        rank = torch.where(cooling, state.cool_until.cpu().double(), state.score.cpu().double())
        order = torch.sort(rank, stable=True).indices
        order = torch.cat([order[~(cooling | going)[order]], order[(cooling & ~going)[order]]])
        kept = self._cost.keep_counts(going)
        groups = self._group_of[order]
        order = order[
            rank_within(torch.arange(order.numel()), groups)
            < (kept - self.floor).clamp(min=0)[groups]
        ]
        fresh = order[~cooling[order]]
        chosen = self._shortest(order, kept)
        if self._budget is None:  # as many as were released, for the target is a number of them
            chosen = order[: max(min(leaving, fresh.numel()), chosen.numel())]
        elif chosen.numel() <= fresh.numel():
            chosen = self._fitting(fresh, kept)
        self._become(penalised.index_fill(0, chosen, True).nonzero().flatten(), state)
        warmed = chosen[cooling[chosen] & self.members.cpu()[chosen]]
        return warmed if warmed.numel() else None

    def _become(self, ids: Tensor, state: LifecycleState) -> None:
        # With a tolerance, more are penalised than needed, and the first that are caught go.
        ids = ids if self._tolerance else self.needed(ids, state)
        self.members = torch.zeros_like(self.members).index_fill(
            0, ids.to(self.members.device), True
        )

    # ---------------------------------------------------------------- who is enrolled

    def needed(self, ids: Tensor, state: LifecycleState) -> Tensor:
        """Without the best ones that a budget can spare.

        Args:
            ids: Penalised or caught, ascending.
            state: Where every structure stands.
        """
        if self._budget is None:
            return ids
        committed, chosen = state.committed.cpu(), ids.cpu()
        kept = self._cost.keep_counts(committed.index_fill(0, chosen, True))
        free = torch.zeros_like(committed).index_fill(0, chosen, True) & ~committed
        best = _lowest_first(free, -state.score.cpu())
        unit = torch.full_like(kept, self._divisible)
        back = affordable(best, kept, self._group_of, self._met, unit)
        return ids[~torch.isin(ids, back.to(ids.device))]

    def with_missing(self, ids: Tensor, state: LifecycleState, nearness: Tensor) -> Tensor:
        """The caught ones and, nearest to being caught first, as many more as the target lacks.

        Args:
            ids: Caught at this step.
            state: Where every structure stands.
            nearness: The lowest go first, shape ``(S,)``.
        """
        rest = self.members & (state.phase == ACTIVE)
        rest[ids] = False
        pool = _lowest_first(rest, nearness)
        kept = self._without(ids, state)
        more = self._shortest(pool, kept) if self._budget is None else self._fitting(pool, kept)
        return torch.cat([ids, more.to(ids.device)])

    def with_extra(self, ids: Tensor, state: LifecycleState, step: int, share: float) -> Tensor:
        """What is enrolled at the last moment and, by score, what a tournament adds to it.

        Args:
            ids: Enrolled at this step.
            state: Where every structure stands.
            step: Number of the optimizer step.
            share: How many more, as a share of ``ids``; rounded down, for among a few a dear one
                would stay while cheap ones come back, and the budget would not be spent.
        """
        wanted = math.floor(share * ids.numel())
        rest = (state.phase == ACTIVE) & ~state.cooling(step)
        rest[ids] = False
        kept = self._without(ids, state)

        def enough(left: Tensor) -> bool:
            return int((kept - left).sum()) >= wanted

        more = refill(_lowest_first(rest, state.score), kept, self.floor, self._group_of, enough)
        return torch.cat([ids, more.to(ids.device)])

    # ---------------------------------------------------------------- helpers

    def _without(self, ids: Tensor, state: LifecycleState) -> Tensor:
        return self._cost.keep_counts(state.committed.index_fill(0, ids, True).cpu())

    def _shortest(self, order: Tensor, kept: Tensor) -> Tensor:
        return refill(order, kept, self.floor, self._group_of, self._met)

    def _fitting(self, order: Tensor, kept: Tensor) -> Tensor:
        return fitting(
            order,
            kept,
            self._group_of,
            self._met,
            self._cost.macs,
            lambda order: self._shortest(order, kept),
        )


def _lowest_first(mask: Tensor, key: Tensor) -> Tensor:
    ids = mask.nonzero().flatten()
    return ids[torch.sort(key[ids], stable=True).indices].cpu()
