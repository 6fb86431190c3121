"""Which residual branches leave: a choice of its own, before that of the widths.

A branch is worth far more than a channel and cannot be compared with one; branches are ranked
among themselves, by importance per multiply-accumulate, and as many leave as the budget says.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.structures.branches import branch_around, branch_groups
from decayprune.structures.structure_map import StructureMap

Worth = Callable[[], Tensor | None]
"""What is known of branches by now."""


class Depth:
    """The residual branches of a model, as a selector sees them.

    Args:
        structures: What can be pruned.
        cost: What remains costs.
        worth: Gives that of each branch, shape ``(B,)``, or None: its importance, as without it.

    Attributes:
        groups: Which groups are branches, bool, shape ``(G,)``.
        macs: Multiply-accumulates of each branch in the dense model, ``(B,)``.
    """

    def __init__(
        self, structures: StructureMap, cost: CostModel, worth: Worth | None = None
    ) -> None:
        self.groups = branch_groups(structures)
        numbers = [branch.structure for branch in structures.branches]
        self._ids = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        self._worth = worth
        self._around, self._sizes = branch_around(structures), cost.sizes
        self._group_of = structures.group_of
        whole = cost.macs(cost.sizes)
        self.macs = torch.tensor(
            [whole - cost.macs(self._without(one)) for one in numbers], device="cpu"
        )

    def _without(self, branch: int) -> Tensor:
        kept = self._sizes.clone()
        kept[self._group_of[branch]] = 0
        return kept

    def leaving(self, budget: Budget) -> int:
        """How many branches a budget takes."""
        if budget.depth is None:
            return 0
        return self._ids.numel() - math.floor(budget.depth * self._ids.numel() + 1e-9)

    def surely_left(self, floor: Tensor, budget: Budget) -> Tensor:
        """Least widths with those branches gone that save least, shape ``(G,)``.

        Args:
            floor: Least widths where all branches are gone.
            budget: Says how many leave.
        """
        cheapest = self._ids[self.macs.sort(stable=True).indices[: self.leaving(budget)]]
        kept = torch.where(self.groups, self._sizes, floor)
        kept[self._group_of[cheapest]] = 0
        return kept

    def first(
        self, order: Tensor, score: Tensor, cooling: Tensor, budget: Budget, extra: float = 0.0
    ) -> Tensor:
        """An order of structures in which branches come first, as many as have to leave.

        Widths inside of branches that leave are not in it: they leave with them.

        Args:
            order: Structures that may leave; all others have left or are about to.
            score: Importances, shape ``(S,)``.
            cooling: Those that cool down, bool, shape ``(S,)``.
            budget: Says how many leave in all.
            extra: How many more start, as a share.
        """
        here = torch.isin(self._ids, order)
        number = self.leaving(budget) - int((~here).sum())
        number = max(0, number + math.ceil(extra * number - 1e-9))
        known = None if self._worth is None else self._worth()
        worth = score[self._ids].double() if known is None else known
        ranked = self._ids[(worth / self.macs.clamp(min=1)).sort(stable=True).indices]
        ranked = ranked[torch.isin(ranked, order)]
        awake_first = cooling[ranked].int().sort(stable=True).indices
        chosen = ranked[awake_first][:number]
        gone = torch.cat([self._ids[~here], chosen])
        widths = order[~torch.isin(order, self._ids) & ~torch.isin(self._around[order], gone)]
        return torch.cat([chosen, widths])

    def back_first(self, ids: Tensor) -> Tensor:
        """Candidates for a release, branches in front: their number is fixed by the budget."""
        branch = torch.isin(ids, self._ids)
        return torch.cat([ids[branch], ids[~branch]])
