"""Who leaves and who may come back: against a twin that tries, and in a few pinned cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decayprune.selection.target import Target, lowest_first
from reference.target import SlowTarget

GROUP_OF = torch.tensor([0, 0, 0, 0, 1, 1, 1])
ORDER = torch.tensor([4, 0, 5, 1, 6, 2, 3])


@dataclass
class Chain:
    """Costs of layers in a row, each as wide as a group: products, as in a network."""

    widths: list[int]

    @property
    def sizes(self) -> Tensor:
        return torch.tensor(self.widths)

    def macs(self, kept: Tensor) -> int:
        return chain(kept.tolist())


def chain(kept: list[int]) -> int:
    return sum(a * b for a, b in zip([3, *kept], [*kept, 2], strict=True))


def target(
    met: Callable[[Tensor], bool],
    *,
    floor: tuple[int, int] = (1, 1),
    unit: tuple[int, int] = (1, 1),
    sizes: tuple[int, int] = (4, 3),
    cost: Any = None,
) -> Target:
    return Target(
        group_of=GROUP_OF,
        cost=cost or Chain(list(sizes)),
        met=met,
        floor=torch.tensor(floor),
        unit=torch.tensor(unit),
    )


def at_most(total: int) -> Callable[[Tensor], bool]:
    return lambda kept: int(kept.sum()) <= total


FULL = torch.tensor([4, 3])


def test_the_shortest_part_of_the_order_leaves() -> None:
    assert target(at_most(7)).shortest(ORDER, FULL).tolist() == []
    assert target(at_most(5)).shortest(ORDER, FULL).tolist() == [4, 0]
    assert FULL.tolist() == [4, 3]


def test_groups_at_their_floor_are_passed_over() -> None:
    assert target(at_most(4), floor=(1, 2)).shortest(ORDER, FULL).tolist() == [4, 0, 1]
    assert target(at_most(0), floor=(1, 2)).shortest(ORDER, FULL).tolist() == [4, 0, 1, 2]


def test_widths_end_at_multiples_of_their_unit() -> None:
    pairs = target(at_most(5), unit=(2, 1))
    assert pairs.shortest(ORDER, FULL).tolist() == [4, 5]  # one of the first group saves nothing
    odd = torch.tensor([3, 3])  # something was released
    assert pairs.shortest(ORDER[1:], odd).tolist() == [0]
    assert pairs.until(at_most(7)).shortest(ORDER[1:], odd).tolist() == [0]


def test_who_cools_down_leaves_only_where_all_others_are_not_enough() -> None:
    cooling = torch.tensor([0, 4])  # 0 has been out of the game for longer
    assert target(at_most(5)).shortest(ORDER, FULL, cooling).tolist() == [5, 1]
    assert target(at_most(3)).shortest(ORDER, FULL, cooling).tolist() == [5, 1, 6, 2]
    assert target(at_most(2)).shortest(ORDER, FULL, cooling).tolist() == [5, 1, 6, 2, 3]


def test_what_is_released_leaves_the_target_met() -> None:
    kept = torch.tensor([2, 1])
    assert target(at_most(5)).releasable(ORDER[:4], kept).tolist() == [4, 0]
    assert target(at_most(3)).releasable(ORDER[:4], kept).tolist() == []

    def second_full(kept: Tensor) -> bool:
        return bool((kept <= torch.tensor([3, 1])).all())

    # The first cannot come back, which does not keep the others out.
    assert target(second_full).releasable(ORDER[:4], kept).tolist() == [0]


def test_structures_come_back_in_whole_units_or_until_their_group_is_uncut() -> None:
    pairs = target(at_most(7), unit=(2, 2))
    assert pairs.releasable(torch.tensor([0, 4]), torch.tensor([2, 2])).tolist() == [4]
    assert pairs.releasable(torch.tensor([0, 4, 1]), torch.tensor([2, 2])).tolist() == [4, 0, 1]


@dataclass
class Dear:
    """The first group costs ten times as much."""

    sizes: Tensor

    def macs(self, kept: Tensor) -> int:
        return int(10 * kept[0] + kept[1])


def fit(order: list[int], limit: int) -> list[int]:
    cost = Dear(FULL)
    dear = target(lambda kept: cost.macs(kept) <= limit, floor=(1, 0), cost=cost)
    return dear.fitting(torch.tensor(order), FULL).tolist()


def test_what_the_last_one_makes_needless_stays() -> None:
    assert fit([4, 5, 0], 33) == [0]
    assert fit([4, 0, 5], 32) == [4, 0]


def test_a_dear_last_one_is_passed_over_where_others_fit_better() -> None:
    assert fit([0, 4, 5, 6], 40) == [4, 5, 6]
    assert fit([0, 4, 5, 6], 33) == [0]


def test_all_that_may_leaves_where_the_target_is_out_of_reach() -> None:
    assert fit([0, 1, 2, 3, 4], 1) == [0, 1, 2, 4]
    assert fit([0, 4], 43) == []


@pytest.mark.parametrize(
    ("share", "rounded", "more"),
    [(0.0, math.ceil, 0), (0.3, math.ceil, 1), (0.3, math.floor, 0), (0.6, math.floor, 1)],
)
def test_a_tournament_enrols_a_share_more(
    share: float, rounded: Callable[[float], int], more: int
) -> None:
    found = target(at_most(5)).enrolled(ORDER[:2], ORDER, FULL, share, rounded)
    assert found.tolist() == ORDER[: 2 + more].tolist()


def test_shares_are_not_rounded_up_for_a_last_bit() -> None:
    group_of, order = torch.zeros(300, dtype=torch.int64), torch.arange(300)
    wide = Target(
        group_of=group_of,
        cost=Chain([300]),  # type: ignore[arg-type]
        met=at_most(0),
        floor=torch.tensor([1]),
        unit=torch.tensor([1]),
    )
    assert 0.07 * 100 > 7
    assert wide.enrolled(order[:100], order, torch.tensor([300]), 0.07).numel() == 107


def test_lowest_first_keeps_ties_in_order() -> None:
    mask = torch.tensor([True, True, False, True])
    assert lowest_first(mask, torch.tensor([2.0, 1.0, 0.0, 1.0])).tolist() == [1, 3, 0]


# ---------------------------------------------------------------- against the twin


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """Groups of any sizes, floors and units, something committed, and bounds on two costs."""
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    units = [draw(st.integers(1, 4)) for _ in sizes]
    least = [draw(st.integers(1, size)) for size in sizes]
    floors = [min(-(-f // u) * u, s) for f, u, s in zip(least, units, sizes, strict=True)]
    group_of = [group for group, size in enumerate(sizes) for _ in range(size)]
    order = draw(st.permutations(range(len(group_of))))
    committed = draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
    room = [size - floor for size, floor in zip(sizes, floors, strict=True)]
    gone: list[int] = []
    for structure in order:
        group = group_of[structure]
        if committed[structure] and room[group]:
            room[group] -= 1
            gone.append(structure)
    active = [s for s in order if s not in gone]
    return {
        "sizes": sizes, "units": units, "floors": floors, "group_of": group_of,
        "gone": draw(st.permutations(gone)),
        "order": draw(st.permutations(active)),
        "cooling": draw(st.permutations(active))[: draw(st.integers(0, len(active)))],
        "macs": draw(st.floats(0, 1)) * chain(sizes),
        "number": draw(st.floats(0, 1)) * len(order),
    }  # fmt: skip


def both(s: dict[str, Any]) -> tuple[Target, SlowTarget]:
    """Two bounds that hold together: one on a product of widths, one on their sum."""

    def met(kept: list[int]) -> bool:
        return chain(kept) <= s["macs"] and sum(kept) <= s["number"]

    fast = Target(
        group_of=torch.tensor(s["group_of"]),
        cost=Chain(s["sizes"]),  # type: ignore[arg-type]
        met=lambda kept: met(kept.tolist()),
        floor=torch.tensor(s["floors"]),
        unit=torch.tensor(s["units"]),
    )
    return fast, SlowTarget(s["group_of"], s["sizes"], s["floors"], s["units"], met, chain)


def tensor(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)


@settings(deadline=None, max_examples=100)
@given(situations())
@pytest.mark.parametrize("what", ["shortest", "needed", "fitting"])
def test_who_leaves_is_who_the_twin_finds(what: str, situation: dict[str, Any]) -> None:
    fast, slow = both(situation)
    order, cooling = situation["order"], situation["cooling"]
    kept = slow.without(situation["sizes"], situation["gone"])
    found = getattr(fast, what)(tensor(order), torch.tensor(kept), tensor(cooling)).tolist()
    assert found == getattr(slow, what)(order, kept, cooling)
    left = slow.without(kept, found)
    assert all(now >= floor for now, floor in zip(left, situation["floors"], strict=True))


@settings(deadline=None, max_examples=100)
@given(situations())
def test_who_may_come_back_is_who_the_twin_finds(situation: dict[str, Any]) -> None:
    fast, slow = both(situation)
    gone = situation["gone"]
    kept = slow.without(situation["sizes"], gone)
    found = fast.releasable(tensor(gone), torch.tensor(kept)).tolist()
    assert found == slow.releasable(gone, kept)
    if found:
        assert slow.met(slow.without(situation["sizes"], [s for s in gone if s not in found]))


@settings(deadline=None, max_examples=100)
@given(situations(), st.integers(0, 12))
def test_so_many_leave_as_the_twin_says(situation: dict[str, Any], number: int) -> None:
    fast, slow = both(situation)
    order = situation["order"]
    kept = slow.without(situation["sizes"], situation["gone"])
    found = fast.leading(tensor(order), torch.tensor(kept), number).tolist()
    assert found == slow.leading(order, kept, number)
