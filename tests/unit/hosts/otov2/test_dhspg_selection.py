"""Who leaves in DHSPG, without a network: the partition, the caught, the missing, replacements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from decayprune.hosts.otov2.dhspg_selection import DhspgSelector
from decayprune.method import lifecycle
from decayprune.method.lifecycle import LifecycleState

SIZES = torch.tensor([8, 8])
GROUP_OF = torch.arange(2).repeat_interleave(8)


class Widths:
    """Stands in for a cost model where a number of structures is the target."""

    sizes = SIZES

    def keep_counts(self, committed: Tensor) -> Tensor:
        return SIZES - torch.bincount(GROUP_OF[committed], minlength=2)


def selector(*, divisible: int = 1, extra: float = 0.0, sparsity: float = 0.5) -> DhspgSelector:
    cost: Any = Widths()
    chooser = DhspgSelector(
        GROUP_OF,
        cost,
        budget=None,
        sparsity=sparsity,
        tolerance=0.0,
        divisible=divisible,
        stop_step=9,
        extra=extra,
        device=torch.device("cpu"),
    )
    chooser.draw(torch.arange(16.0).flip(0), LifecycleState.fresh(16))  # the first ones go
    return chooser


def decaying(ids: Tensor) -> LifecycleState:
    fresh = LifecycleState.fresh(16)
    return lifecycle.begin(fresh, ids, length=torch.ones(ids.numel()), decay_steps=4)


def ids_of(chooser: DhspgSelector, state: LifecycleState, step: int) -> list[int]:
    found = chooser.select(state, step, {}, released=False)
    assert found is not None
    return found.ids.tolist()


def test_the_caught_decay_and_the_missing_at_the_stop() -> None:
    chooser = selector()
    assert chooser.members.nonzero().flatten().tolist() == [*range(7), 8]
    state = decaying(torch.tensor([0, 1]))
    assert chooser.select(state, 5, {}, released=False) is None  # nothing was tested
    chooser.note(torch.tensor([3, 4]), torch.arange(16.0).flip(0))
    assert ids_of(chooser, state, 5) == [3, 4]
    assert ids_of(chooser, state, 9) == [3, 4, 8, 6, 5, 2]  # nearest to being caught first


def test_the_missing_fill_widths_to_multiples() -> None:
    chooser = selector(divisible=4, sparsity=0.4)
    state = decaying(torch.tensor([0]))
    chooser.note(torch.tensor([1]), torch.arange(16.0))
    state_after = state.committed.index_fill(0, torch.tensor(ids_of(chooser, state, 9)), True)
    assert Widths().keep_counts(state_after).tolist() == [4, 4]


def test_a_tournament_adds_whole_structures_only() -> None:
    chooser = selector(extra=0.3)
    chooser.note(torch.tensor([0, 1]), torch.arange(16.0))
    assert len(ids_of(chooser, LifecycleState.fresh(16), 9)) == 8 + 2  # 2.4


def test_the_released_are_replaced_one_for_one() -> None:
    chooser = selector()
    state = lifecycle.release(decaying(torch.tensor([0, 1])), torch.tensor([1]), cool_until=20)
    state = replace(state, score=torch.arange(16.0))
    found = chooser.select(state, 5, {}, released=True)
    assert found is not None
    assert found.ids.tolist() == []
    assert chooser.members.nonzero().flatten().tolist() == [0, *range(2, 9)]


def test_after_the_stop_what_the_target_can_spare_may_leave() -> None:
    chooser = selector()
    assert chooser.releasable(decaying(torch.arange(9)), 12, torch.tensor([5, 3])).tolist() == [5]
    assert not chooser.done(decaying(torch.arange(7)), 12)
    assert chooser.done(decaying(torch.arange(8)), 12)


def test_it_goes_on_where_it_was() -> None:
    again, chooser = selector(sparsity=0.2), selector()
    again.load_state_dict(chooser.state_dict())
    assert torch.equal(again.members, chooser.members)
    assert again.drawn
