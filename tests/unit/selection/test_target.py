"""Replacing and sparing: a target is met within one structure, and widths keep their floor."""

from __future__ import annotations

import torch
from torch import Tensor

from decayprune.selection.target import affordable, fitting, refill

GROUP_OF = torch.tensor([0, 0, 0, 0, 1, 1, 1])
ORDER = torch.tensor([4, 0, 5, 1, 6, 2, 3])


def at_most(total: int) -> object:
    def met(kept: Tensor) -> bool:
        return int(kept.sum()) <= total

    return met


def test_the_shortest_part_of_the_order_leaves() -> None:
    kept, floor = torch.tensor([4, 3]), torch.tensor([1, 1])
    assert refill(ORDER, kept, floor, GROUP_OF, at_most(7)).tolist() == []
    assert refill(ORDER, kept, floor, GROUP_OF, at_most(5)).tolist() == [4, 0]
    assert kept.tolist() == [4, 3]


def test_groups_at_their_floor_are_passed_over() -> None:
    kept, floor = torch.tensor([4, 3]), torch.tensor([1, 2])
    assert refill(ORDER, kept, floor, GROUP_OF, at_most(4)).tolist() == [4, 0, 1]
    assert refill(ORDER, kept, floor, GROUP_OF, at_most(0)).tolist() == [4, 0, 1, 2]


def test_what_is_spared_leaves_the_target_met() -> None:
    kept = torch.tensor([2, 1])
    assert affordable(ORDER[:4], kept, GROUP_OF, at_most(5)).tolist() == [4, 0]
    assert affordable(ORDER[:4], kept, GROUP_OF, at_most(3)).tolist() == []

    def second_full(kept: Tensor) -> bool:
        return bool((kept <= torch.tensor([3, 1])).all())

    # The first cannot come back, which does not keep the others out.
    assert affordable(ORDER[:4], kept, GROUP_OF, second_full).tolist() == [0]


def cost(kept: Tensor) -> float:
    return float(10 * kept[0] + kept[1])


def fit(order: list[int], limit: float) -> list[int]:
    kept, floor = torch.tensor([4, 3]), torch.tensor([1, 0])

    def met(kept: Tensor) -> bool:
        return cost(kept) <= limit

    def shortest(order: Tensor) -> Tensor:
        return refill(order, kept, floor, GROUP_OF, met)

    return fitting(torch.tensor(order), kept, GROUP_OF, met, cost, shortest).tolist()


def test_what_the_last_one_makes_needless_stays() -> None:
    assert fit([4, 5, 0], 33) == [0]
    assert fit([4, 0, 5], 32) == [4, 0]


def test_a_dear_last_one_is_passed_over_where_others_fit_better() -> None:
    assert fit([0, 4, 5, 6], 40) == [4, 5, 6]
    assert fit([0, 4, 5, 6], 33) == [0]


def test_all_that_may_leaves_where_the_target_is_out_of_reach() -> None:
    assert fit([0, 1, 2, 3, 4], 1) == [0, 1, 2, 4]
    assert fit([0, 4], 43) == []
