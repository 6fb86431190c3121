"""Who leaves in HESSO, without a network: periods, replacements, multiples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from decayprune import Rectify
from decayprune.hosts.otov2.hesso_selection import HessoSelector, Periods
from decayprune.method import lifecycle
from decayprune.method.lifecycle import LifecycleState


class Widths:
    """Stands in for a cost model where a number of structures is the target."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = torch.tensor(sizes)
        self.group_of = torch.arange(len(sizes)).repeat_interleave(self.sizes)

    def keep_counts(self, committed: Tensor) -> Tensor:
        return self.sizes - torch.bincount(self.group_of[committed], minlength=len(self.sizes))


COST: Any = Widths(8, 10)


def selector(periods: Periods, *, divisible: int = 1, rectify: Rectify | None = None) -> Any:
    return HessoSelector(
        COST.group_of,
        COST,
        periods,
        budget=None,
        sparsity=0.5,
        divisible=divisible,
        rectify=rectify,
        decay_steps=4,
    )


def decaying(state: LifecycleState, ids: Tensor) -> LifecycleState:
    return lifecycle.begin(state, ids, length=torch.ones(ids.numel()), decay_steps=4)


def test_periods_begin_one_after_the_other() -> None:
    periods = Periods(start=2, length=3, count=2)
    assert [periods.begun(step) for step in (0, 2, 3, 5, 6, 99)] == [0, 0, 1, 1, 2, 2]
    assert [step for step in range(12) if periods.opens(step)] == [3, 6]
    assert periods.end == 8


@pytest.mark.parametrize(
    ("periods", "wanted"),
    [
        (Periods(start=0, length=9, count=1), 9 + 2),
        (Periods(start=0, length=1, count=1), 9),  # over before anybody is judged
    ],
)
def test_a_tournament_picks_more_only_where_it_is_still_judged(
    periods: Periods, wanted: int
) -> None:
    chooser = selector(periods, rectify=Rectify(extra=0.2))
    chooser.scores = torch.arange(18.0)
    found = chooser.select(LifecycleState.fresh(18), 1, {}, released=False)
    assert found.ids.numel() == wanted


def test_what_was_released_is_replaced_and_widths_stay_multiples() -> None:
    chooser = selector(Periods(start=0, length=9, count=1), divisible=4)
    chooser.scores = torch.arange(18.0)
    state = LifecycleState.fresh(18)
    first = chooser.select(state, 1, {}, released=False)
    state = decaying(replace(state, score=first.scores), first.ids)
    assert COST.keep_counts(state.committed).tolist() == [4, 4]
    chooser.scores = None
    assert chooser.select(state, 2, {}, released=False) is None

    state = lifecycle.release(state, first.ids[:1], cool_until=9)
    second = chooser.select(state, 3, {}, released=True)
    assert second.ids.tolist() == [4]  # the next of the same group
    assert second.cooldowns_ended.tolist() == []
    assert chooser.done(decaying(state, second.ids), 3)


def test_nothing_comes_back_that_the_target_needs() -> None:
    chooser = selector(Periods(start=0, length=9, count=1))
    state = decaying(LifecycleState.fresh(18), torch.arange(4, 14))  # one more than needed
    ids = torch.tensor([9, 5, 12])
    assert chooser.releasable(state, 3, ids).tolist() == [9]
    assert chooser.releasable(state, 1, ids).tolist() == ids.tolist()  # the first period begins
