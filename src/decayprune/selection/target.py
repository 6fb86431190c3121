"""Who leaves for a target, and who may stay: the one question behind every choice.

Whoever selects has a ranking, and a test that says whether some widths are good enough. A
:class:`Target` finds the shortest part of the ranking that has to leave, what of it may stay after
all, what may come back later, and what a tournament enrols on top. Widths have floors, and may have
to be multiples of a unit.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel

Met = Callable[[Tensor], bool]
"""Structures kept in each group, shape ``(G,)`` -> whether the target holds."""

_PASSED_OVER = 4  # how many may be, one after the other


@dataclass(frozen=True, kw_only=True)
class Target:
    """A test on widths that has to hold, and what widths are allowed on the way.

    Everywhere ``kept`` says how many structures of each group are left, commitments counted, shape
    ``(G,)``, and an order of structures has shape ``(n,)``, the first to leave in front. All are on
    the CPU.

    Attributes:
        group_of: Group of each structure, shape ``(S,)``.
        cost: Of the widths.
        met: The test. Fewer structures never fail where more of them pass.
        floor: How many of each group stay in any case, shape ``(G,)``.
        unit: A width that is cut is a multiple of it, shape ``(G,)``.
    """

    group_of: Tensor
    cost: CostModel
    met: Met
    floor: Tensor
    unit: Tensor

    @classmethod
    def plain(cls, group_of: Tensor, cost: CostModel, budget: Budget) -> Target:
        """A budget, with one structure of each group staying in any case, and any width allowed.

        Args:
            group_of: Group of each structure, shape ``(S,)``.
            cost: Of the widths.
            budget: What remains at most.
        """
        one = torch.ones_like(cost.sizes)
        return cls(
            group_of=group_of,
            cost=cost,
            met=lambda kept: cost.meets(budget, kept),
            floor=one,
            unit=one,
        )

    def until(self, met: Met) -> Target:
        """The same widths with another test."""
        return replace(self, met=met)

    def within(self, budget: Budget) -> Target:
        """The same widths with the bounds of a budget as the test."""
        return self.until(lambda kept: self.cost.meets(budget, kept))

    def count(self, ids: Tensor) -> Tensor:
        """How many of some structures each group has, shape ``(G,)``."""
        return torch.bincount(self.group_of[ids], minlength=self.cost.sizes.numel())

    # ---------------------------------------------------------------- who leaves

    def shortest(self, order: Tensor, kept: Tensor, cooling: Tensor | None = None) -> Tensor:
        """The shortest part of an order that has to leave for the target.

        Args:
            order: Candidates. Those of a group at its floor are passed over.
            kept: Structures kept in each group now.
            cooling: Those that cool down, the longest out of the game in front. They stay out,
                unless all others in ``order`` are not enough for the target and for allowed widths;
                then as few as that needs come in.

        Returns:
            Those that leave, in order; all that may if the target cannot be met.
        """
        return self._shortest(self._pool(order, kept, cooling), kept)

    def needed(self, order: Tensor, kept: Tensor, cooling: Tensor | None = None) -> Tensor:
        """The shortest part of an order, without those of it that the target can spare.

        The last one to leave may be dear and overshoot the target by most of what it costs; the
        last in the order then stay first. Arguments and result as in :meth:`shortest`.
        """
        return self._needed(self._pool(order, kept, cooling), kept)[0]

    def fitting(self, order: Tensor, kept: Tensor, cooling: Tensor | None = None) -> Tensor:
        """As :meth:`needed`, and a dear last one is passed over if more MACs stay with others.

        Arguments and result as in :meth:`shortest`.
        """
        order = self._pool(order, kept, cooling)
        best, last = self._needed(order, kept)
        for _ in range(_PASSED_OVER):
            if last is None:
                break
            order = order[order != last]
            ids, last = self._needed(order, kept)
            left = kept - self.count(ids)
            more = self.cost.macs(left) > self.cost.macs(kept - self.count(best))
            if last is not None and more and self._holds(left):
                best = ids
        return best

    def enrolled(
        self,
        ids: Tensor,
        order: Tensor,
        kept: Tensor,
        share: float,
        rounded: Callable[[float], int] = math.ceil,
    ) -> Tensor:
        """What leaves, and what a tournament lets start beside it, to give as much back later.

        Args:
            ids: What leaves.
            order: Who else may start; those of ``ids`` are passed over.
            kept: Structures kept in each group before ``ids`` leave.
            share: How many more, as a share of ``ids``; whole units, so at least as many.
            rounded: Makes a number of structures of that.
        """
        number = rounded(round(share * ids.numel(), 9))  # 0.07 * 100 is a little above 7
        if not number:
            return ids
        rest = order[~torch.isin(order, ids)]
        return torch.cat([ids, self.leading(rest, kept - self.count(ids), number)])

    def leading(self, order: Tensor, kept: Tensor, number: int) -> Tensor:
        """So many of an order, whatever the target; more of them to fill a unit.

        Args:
            order: Candidates. Those of a group at its floor are passed over.
            kept: Structures kept in each group now.
            number: How many leave; all that may if there are fewer.
        """
        return self.until(lambda left: int((kept - left).sum()) >= number)._shortest(order, kept)

    # ---------------------------------------------------------------- who may come back

    def releasable(self, ids: Tensor, kept: Tensor) -> Tensor:
        """Which structures may come back with the target still met, the first preferred.

        Args:
            ids: Candidates, the first to come back in front.
            kept: Structures kept in each group without them.
        """
        kept, chosen = kept.clone(), []
        units, sizes, widths = self.unit.tolist(), self.cost.sizes.tolist(), kept.tolist()
        waiting: dict[int, list[int]] = {}
        full: set[int] = set()  # what does not fit now fits even less when others have come back
        for structure, group in zip(ids.tolist(), self.group_of[ids].tolist(), strict=True):
            if group in full:
                continue
            together = waiting.setdefault(group, [])
            together.append(structure)
            # From one allowed width to the next: a multiple of the unit, or uncut.
            now = widths[group]
            wider = min(now - now % units[group] + units[group], sizes[group])
            if now + len(together) < wider:
                continue
            kept[group] = wider
            if self.met(kept):
                widths[group] = wider
                chosen += waiting.pop(group)
            else:
                kept[group] = now
                full.add(group)
        return torch.tensor(chosen, dtype=torch.int64, device="cpu")

    # ---------------------------------------------------------------- helpers

    def _pool(self, order: Tensor, kept: Tensor, cooling: Tensor | None) -> Tensor:
        """An order without those that cool down, but for as many, the oldest, as are needed."""
        if cooling is None or not cooling.numel():
            return order
        awake = ~torch.isin(order, cooling)

        def pool(number: int) -> Tensor:
            return order[awake | torch.isin(order, cooling[:number])]

        def enough(number: int) -> bool:
            free = self._free(pool(number), kept)
            return self._holds(kept - self._leaving(free, kept, free.numel()))

        return pool(bisect_left(range(cooling.numel()), True, key=enough))

    def _free(self, order: Tensor, kept: Tensor) -> Tensor:
        """Without those that the floors hold."""
        groups = self.group_of[order]
        place = rank_within(torch.arange(order.numel(), device="cpu"), groups)
        return order[place < (kept - self.floor).clamp(min=0)[groups]]

    def _shortest(self, order: Tensor, kept: Tensor) -> Tensor:
        order = self._free(order, kept)
        groups = self.group_of[order]

        def enough(number: int) -> bool:
            return self.met(kept - self._leaving(order, kept, number))

        need = bisect_left(range(order.numel()), True, key=enough)
        place = rank_within(torch.arange(order.numel(), device="cpu"), groups)
        return order[place < self._leaving(order, kept, need)[groups]]

    def _holds(self, kept: Tensor) -> bool:
        """Whether the target holds, at allowed widths."""
        allowed = (kept % self.unit == 0) | (kept == self.cost.sizes)
        return bool(allowed.all()) and self.met(kept)

    def _needed(self, order: Tensor, kept: Tensor) -> tuple[Tensor, int | None]:
        """What :meth:`needed` returns; the last of the shortest part, if that meets the target."""
        ids = self._shortest(order, kept)
        left = kept - self.count(ids)
        if not ids.numel() or not self.met(left):
            return ids, None
        back = self.releasable(ids.flip(0), left)
        return ids[~torch.isin(ids, back)], int(ids[-1])

    def _leaving(self, order: Tensor, kept: Tensor, number: int) -> Tensor:
        """How many of each group leave if so many of an order are wanted, shape ``(G,)``.

        What stays is rounded up to an allowed width; down, where that would take something back.
        """
        left, unit = kept - self.count(order[:number]), self.unit
        up = -(-left // unit) * unit
        down = torch.maximum(left // unit * unit, self.floor)
        uncut = kept == self.cost.sizes  # an uncut width may stay as odd as it is
        left = torch.where(up <= kept, up, torch.where(uncut, kept, down))
        return torch.minimum(kept - left, self.count(order)).clamp(min=0)


def rank_within(values: Tensor, pool: Tensor) -> Tensor:
    """Position of each value among those of its pool, ascending, ties in order."""
    order = torch.sort(values, stable=True).indices
    order = order[torch.sort(pool[order], stable=True).indices]
    sizes = torch.bincount(pool)
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device="cpu") - first[pool[order]]
    return place


def lowest_first(mask: Tensor, key: Tensor) -> Tensor:
    """Where a mask is true, those of the lowest key in front, ties in order.

    Args:
        mask: Bool, shape ``(S,)``.
        key: Shape ``(S,)``.
    """
    ids = mask.nonzero().flatten()
    return ids[torch.sort(key[ids], stable=True).indices]
