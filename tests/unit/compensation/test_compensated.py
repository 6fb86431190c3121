"""What consumers gain when structures are picked, and give back when they are released."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decayprune.compensation.calibration import calibrate
from decayprune.compensation.compensated import Compensated
from decayprune.method import lifecycle
from decayprune.method.lifecycle import LifecycleState
from decayprune.method.selector import Selection
from decayprune.structures import trace
from decayprune.surgery.branches import offer_branches
from interrupts import interrupt, lines_of
from residual_nets import stack


def redundant() -> tuple[nn.Sequential, Tensor]:
    """Hidden channels 4 and 5 are sums of others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[4] = model[0].weight[0] + model[0].weight[1]
        model[0].weight[5] = model[0].weight[2] - 2 * model[0].weight[3]
    return model, torch.randn(64, 4)


class Scripted:
    """Picks what it is told."""

    def __init__(self, *picks: list[int]) -> None:
        self.picks = list(picks)

    def select(self, *_: Any, **__: Any) -> Selection | None:
        return Selection(torch.tensor(self.picks.pop(0))) if self.picks else None

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        return ids.flip(0)

    def done(self, state: LifecycleState, step: int) -> bool:
        return step > 7


def begin(state: LifecycleState, ids: list[int]) -> LifecycleState:
    chosen = torch.tensor(ids)
    return lifecycle.begin(state, chosen, length=torch.ones(len(ids)), decay_steps=5)


def compensated(model: nn.Module, data: Tensor, *picks: list[int]) -> Compensated:
    structures = trace(model, data[:2])
    return Compensated(Scripted(*picks), calibrate(model, structures, [data]))


def pick(subject: Compensated, state: LifecycleState, *, released: bool = False) -> None:
    subject.select(state, 1, {}, released=released)
    subject.settle()


def without(model: nn.Sequential, channels: list[int], x: Tensor) -> Tensor:
    hidden = model[0](x)
    hidden[:, channels] = 0
    return model[1](hidden)


def test_what_can_be_replaced_may_go() -> None:
    model, data = redundant()
    expected = model(data).detach()
    subject = compensated(model, data, [4, 5])
    assert not torch.allclose(without(model, [4, 5], data), expected, atol=0.1)
    pick(subject, LifecycleState.fresh(6))
    torch.testing.assert_close(without(model, [4, 5], data), expected, rtol=1e-2, atol=1e-2)


def test_the_bias_takes_what_is_constant() -> None:
    model, data = redundant()
    with torch.no_grad():
        model[0].weight[2] = 0  # channel 2 is its bias
    expected = model(data).detach()
    subject = compensated(model, data, [2])
    pick(subject, LifecycleState.fresh(6))
    torch.testing.assert_close(without(model, [2], data), expected, rtol=1e-4, atol=1e-4)


def test_columns_of_what_leaves_stay_as_they_are() -> None:
    model, data = redundant()
    before = copy.deepcopy(model)
    pick(compensated(model, data, [1, 4]), LifecycleState.fresh(6))
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[1].weight[:, [1, 4]], before[1].weight[:, [1, 4]])
    changed = (model[1].weight != before[1].weight).any(0)
    assert changed.tolist() == [True, False, True, True, False, True]


def test_released_alone_it_takes_all_back() -> None:
    model, data = redundant()
    before = copy.deepcopy(model)
    subject = compensated(model, data, [4, 5])
    state = LifecycleState.fresh(6)
    pick(subject, state)
    state = begin(state, [4, 5])

    released = lifecycle.release(state, torch.tensor([4, 5]), cool_until=9)
    pick(subject, released, released=True)
    torch.testing.assert_close(model[1].weight, before[1].weight)
    torch.testing.assert_close(model[1].bias, before[1].bias)


def test_one_of_two_takes_its_own_share_back() -> None:
    model, data = redundant()
    subject = compensated(model, data, [4, 5])
    state = LifecycleState.fresh(6)
    pick(subject, state)
    alone, _ = redundant()
    pick(_with_fit_of(subject, alone, data), state)  # 5 alone, by the fit of both

    state = lifecycle.release(begin(state, [4, 5]), torch.tensor([4]), cool_until=9)
    pick(subject, state, released=True)
    torch.testing.assert_close(model[1].weight, alone[1].weight)


def _with_fit_of(subject: Compensated, model: nn.Module, data: Tensor) -> Compensated:
    other = compensated(model, data, [4, 5])
    fitted = other._fitted
    other._fitted = lambda *a: tuple(  # type: ignore[method-assign]
        part.only(part.structure == 5) for part in fitted(*a)
    )
    return other


def test_a_channel_that_has_left_meanwhile_gives_nothing_back() -> None:
    model, data = redundant()
    subject = compensated(model, data, [4], [0])
    state = LifecycleState.fresh(6)
    pick(subject, state)
    state = begin(state, [4])
    pick(subject, state)
    state = begin(state, [0])
    with torch.no_grad():
        model[1].weight[:, 0] = 0
    pick(subject, lifecycle.release(state, torch.tensor([4]), cool_until=9), released=True)
    assert not model[1].weight[:, 0].any()


def test_it_passes_on_what_it_is_asked() -> None:
    model, data = redundant()
    subject = compensated(model, data)
    state = LifecycleState.fresh(6)
    assert subject.select(state, 1, {}, released=False) is None
    assert not subject.settle()
    assert subject.releasable(state, 1, torch.tensor([1, 2])).tolist() == [2, 1]
    assert [subject.done(state, step) for step in (7, 8)] == [False, True]


@pytest.mark.parametrize("picked", [[0, 1, 2, 3, 4, 5], []])
def test_nobody_left_to_take_over_or_nothing_to(picked: list[int]) -> None:
    model, data = redundant()
    before = copy.deepcopy(model)
    subject = Compensated(Scripted(picked), calibrate(model, trace(model, data[:2]), [data]))
    if picked:
        pick(subject, LifecycleState.fresh(6))
    assert torch.equal(model[1].weight, before[1].weight)


def test_saved_and_taken_up_it_gives_back_the_same() -> None:
    model, data = redundant()
    subject = compensated(model, data, [4, 5])
    state = LifecycleState.fresh(6)
    pick(subject, state)
    twin, _ = redundant()
    other = compensated(twin, data)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(subject.state_dict())

    state = lifecycle.release(begin(state, [4, 5]), torch.tensor([5]), cool_until=9)
    pick(subject, state, released=True)
    pick(other, state, released=True)
    assert torch.equal(model[1].weight, twin[1].weight)


def test_interrupted_at_any_line_it_can_be_settled_later() -> None:
    rooms = ["compensation/compensated.py"]

    def due() -> tuple[nn.Module, Compensated]:
        model, data = redundant()
        subject = compensated(model, data, [4, 5])
        subject.select(LifecycleState.fresh(6), 1, {}, released=False)
        return model, subject

    expected, whole = due()
    lines = lines_of(whole.settle, rooms)
    assert len(lines) > 10
    for line in lines:
        model, subject = due()
        interrupt(subject.settle, rooms, line)
        subject.settle()
        assert torch.equal(model[1].weight, expected[1].weight), line


def test_the_end_of_a_branch_that_leaves_is_not_written_to() -> None:
    """A reader that leaves whole gains nothing, and has nothing to give back once it is zero."""
    model, data = stack(blocks=2), torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    structures = offer_branches(model, trace(model, data), data)
    first, second = structures.groups[1].start, structures.groups[2].start
    branch = structures.branches[0].structure
    read = calibrate(model, structures, [data])
    subject = Compensated(Scripted([first, second], [branch], [first + 1]), read)
    gates = [model.blocks[n].down.weight for n in range(2)]

    state, before = LifecycleState.fresh(structures.num_structures), [g.clone() for g in gates]
    pick(subject, state)
    assert not any(torch.equal(a, b) for a, b in zip(gates, before, strict=True))
    state, before = begin(state, [first, second]), [g.clone() for g in gates]
    pick(subject, state)
    state = begin(state, [branch])
    pick(subject, state)
    assert torch.equal(gates[0], before[0])  # its columns are those of a gate that leaves

    state = lifecycle.finish(state, torch.tensor([branch]))
    state = lifecycle.release(state, torch.tensor([first, second]), cool_until=9)
    pick(subject, state, released=True)
    assert torch.equal(gates[0], before[0])
    assert not torch.equal(gates[1], before[1])
