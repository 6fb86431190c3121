"""What is kept of a training as it passes."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decayprune.compensation.training import TrainingBatches


class Clock:
    def __init__(self) -> None:
        self.step = 1


class Masked(nn.Linear):
    def forward(self, x: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
        return super().forward(x)


def watching(
    model: nn.Module, number: int = 2, rounds: Sequence[int] = (4,), example: Any = None
) -> tuple[TrainingBatches, Clock]:
    clock = Clock()
    given = torch.zeros(2, 3) if example is None else example
    found = TrainingBatches(model, number, given, rounds=rounds, step=lambda: clock.step)
    return found, clock


def batch(value: float) -> Tensor:
    return torch.full((2, 3), float(value))


def values(found: TrainingBatches) -> list[float]:
    return [float(inputs[0][0, 0]) for inputs in found.kept]


def test_the_last_steps_before_the_first_round_are_kept() -> None:
    model = nn.Linear(3, 2)
    found, clock = watching(model)
    for step in range(1, 7):
        clock.step = step
        model(batch(step))
        with torch.no_grad():
            model(batch(100))
        model.eval()(batch(200))
        model.train()
        assert found.due() == (step >= 4)
    assert values(found) == [3, 4]


def test_later_rounds_keep_what_came_before_them() -> None:
    model = nn.Linear(3, 2)
    found, clock = watching(model, rounds=(7, 3, 4))
    seen = {}
    for step in range(1, 9):
        clock.step = step
        model(batch(step))
        if found.due():
            seen[step] = values(found)
            found.learned()
    assert seen == {3: [2, 3], 4: [3, 4], 7: [6, 7]}
    assert not model._forward_pre_hooks
    assert not found.kept


def test_of_several_passes_in_a_step_the_last_are_kept() -> None:
    model = nn.Linear(3, 2)
    found, clock = watching(model)
    for step in (3, 4):
        clock.step = step
        for part in range(3):
            model(batch(10 * step + part))
    assert values(found) == [41, 42]


def test_what_is_kept_is_a_copy() -> None:
    model = nn.Linear(3, 2)
    found, clock = watching(model)
    clock.step, reused = 4, batch(1)
    model(reused)
    reused.zero_()
    assert values(found) == [1]


X = batch(1)


@pytest.mark.parametrize(
    ("example", "call", "kept"),
    [
        (X, lambda model: model(X), (X,)),
        (X, lambda model: model(X, X), (X,)),  # a second argument that the example has not
        ((X, X), lambda model: model(X, X), (X, X)),
        (X, lambda model: model(x=X, labels=X), {"x": X}),
        ({"x": X}, lambda model: model(x=X, mask=X, labels=X), {"x": X, "mask": X}),
        ({"x": X, "mask": X}, lambda model: model(X, mask=X), {"x": X, "mask": X}),
        ({"x": X}, lambda model: model(X), {"x": X}),
    ],
)
def test_every_way_to_call(example: Any, call: Callable[[nn.Module], Any], kept: Any) -> None:
    model = Masked(3, 2)
    found, clock = watching(model, example=example)
    clock.step = 4
    call(model)
    torch.testing.assert_close(found.kept[0], kept, rtol=0, atol=0)


def test_what_cannot_be_saved_is_named() -> None:
    model = Masked(3, 2)
    _, clock = watching(model, example={"x": X})
    clock.step = 4
    with pytest.raises(TypeError, match="called with a object, where tensors and plain values"):
        model(X, mask=object())


def test_a_model_that_nobody_calls_is_noticed_at_once() -> None:
    model = nn.Linear(3, 2)
    found, _ = watching(model)
    with pytest.raises(RuntimeError, match="without a call of the model in training mode"):
        found.due()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_the_model_tell_nobody(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Linear(3, 2)
    found, clock = watching(model)
    clock.step = 4
    copied(model)(batch(7))
    assert not found.kept
    model(batch(8))
    assert values(found) == [8]


def test_closed_nothing_is_left_on_the_model() -> None:
    model = nn.Linear(3, 2)
    found, clock = watching(model)
    clock.step = 4
    model(X)
    found.close()
    found.close()
    assert not model._forward_pre_hooks
    assert not found.due()
    assert not found.near(4)
    assert not found.kept


def test_one_that_was_forgotten_keeps_nothing_alive() -> None:
    model = nn.Linear(3, 2)
    found, clock = watching(model)
    clock.step = 4
    alive = weakref.ref(found)
    del found
    gc.collect()
    assert alive() is None
    model(X)


def test_states_before_and_after_closing() -> None:
    model = nn.Linear(3, 2)
    found, clock = watching(model)
    clock.step = 3
    model(batch(3))
    before = found.state_dict()
    found.close()
    after = found.state_dict()

    found.load_state_dict(before)
    assert values(found) == [3]
    clock.step = 4
    model(batch(4))
    assert values(found) == [3, 4]
    found.load_state_dict(after)
    assert not model._forward_pre_hooks
    assert not found.due()


def test_a_compiled_model_is_not_broken_up_and_has_not_been_called() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    found, clock = watching(model)
    graphs: list[Any] = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=counting, fullgraph=True)
    clock.step = 4
    compiled(X).sum().backward()
    with pytest.raises(RuntimeError, match=r"it is compiled, .* Pass the data itself"):
        found.due()
    assert len(graphs) == 1
    assert not found.kept
