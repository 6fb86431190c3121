"""Which branches leave: the lowest per multiply-accumulate, as many as the budget says."""

from __future__ import annotations

import pytest
import torch

import decayprune as dp
from decayprune.cost import CostModel
from decayprune.selection.depth import Depth
from decayprune.structures import StructureMap, trace
from decayprune.surgery.branches import offer_branches
from residual_nets import INPUTS, stack


@pytest.fixture
def structures() -> StructureMap:
    model = stack(blocks=4)
    return offer_branches(model, trace(model, INPUTS), INPUTS)


@pytest.fixture
def depth(structures: StructureMap) -> Depth:
    shapes = {name: p.shape for name, p in stack(blocks=4).named_parameters()}
    return Depth(structures, CostModel(structures, shapes))


def chosen(
    depth: Depth, structures: StructureMap, worth: list[float], share: float, **options: object
) -> list[int]:
    """Places of the branches that leave, in order."""
    size, first = structures.num_structures, structures.branches[0].structure
    score = torch.ones(size)
    score[first:] = torch.tensor(worth)
    cooling = torch.zeros(size, dtype=torch.bool)
    cooling[[first + n for n in options.pop("cooling", [])]] = True
    order = torch.arange(size)
    order = order[~torch.isin(order, torch.tensor([first + n for n in options.pop("left", [])]))]
    found = depth.first(order, score, cooling, dp.Budget(depth=share), **options)
    return [n - first for n in found.tolist() if n >= first]


@pytest.mark.parametrize(("share", "number"), [(1.0, 0), (0.75, 1), (0.7, 2), (0.5, 2), (0.1, 4)])
def test_at_most_the_share_stays(depth: Depth, share: float, number: int) -> None:
    assert depth.leaving(dp.Budget(depth=share)) == number
    assert depth.leaving(dp.Budget(macs=0.5)) == 0


def test_the_lowest_leave(depth: Depth, structures: StructureMap) -> None:
    assert depth.macs.tolist() == [2 * 16 * 32] * 4
    assert chosen(depth, structures, [3.0, 1.0, 2.0, 4.0], 0.5) == [1, 2]
    assert chosen(depth, structures, [3.0, 1.0, 2.0, 4.0], 0.5, extra=0.2) == [1, 2, 0]


def test_what_has_left_counts_and_what_cools_down_comes_last(
    depth: Depth, structures: StructureMap
) -> None:
    assert chosen(depth, structures, [3.0, 1.0, 2.0, 4.0], 0.5, left=[3]) == [1]
    assert chosen(depth, structures, [3.0, 1.0, 2.0, 4.0], 0.5, cooling=[1]) == [2, 0]


def test_widths_inside_of_what_leaves_are_not_picked(
    depth: Depth, structures: StructureMap
) -> None:
    first = structures.branches[0].structure
    order, score = torch.arange(structures.num_structures), torch.ones(structures.num_structures)
    score[first + 1] = 0.5
    found = depth.first(
        order, score, torch.zeros_like(score, dtype=torch.bool), dp.Budget(depth=0.75)
    )
    groups = set(structures.group_of[found].tolist())
    layers = {structures.groups[n].layer for n in groups}
    assert layers == {"stem", "blocks.0.up", "blocks.2.up", "blocks.3.up", "blocks.1.down"}


def test_what_is_surely_reached_takes_the_branches_that_save_least(depth: Depth) -> None:
    depth.macs = torch.tensor([4, 1, 3, 2])
    floor = torch.ones_like(depth.groups, dtype=torch.int64)
    floor[depth.groups] = 0
    left = depth.surely_left(floor, dp.Budget(depth=0.5))
    assert left[depth.groups].tolist() == [1, 0, 1, 0]
    assert left[~depth.groups].tolist() == [1] * 5


def test_branches_come_back_first(depth: Depth, structures: StructureMap) -> None:
    first = structures.branches[0].structure
    assert depth.back_first(torch.tensor([3, first + 1, 0, first])).tolist() == [
        first + 1,
        first,
        3,
        0,
    ]
