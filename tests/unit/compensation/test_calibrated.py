"""Who learns for a selector: at the step for it, once; a state is taken up whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decayprune.compensation.calibrated import Calibrated
from decayprune.compensation.learned import Learned
from decayprune.compensation.training import TrainingBatches
from decayprune.method.lifecycle import LifecycleState
from decayprune.method.selector import Selection
from decayprune.structures import trace
from loops import INPUTS, batches, net

FIRST = 3
DATA = [images for images, _ in batches(FIRST + 1)]


class OnceStructureZero:
    """Picks one structure, at each call."""

    def select(self, *_: Any, **__: Any) -> Selection | None:
        return Selection(torch.tensor([0]))

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        return ids

    def done(self, state: LifecycleState, step: int) -> bool:
        return True


class Training:
    """A model that is called as in a loop, and what its pruner has of the data."""

    def __init__(self, *, watches: bool) -> None:
        self.model, self.step, self.read = net().train(), 1, list[int]()
        structures = trace(self.model, INPUTS)
        self.fresh = LifecycleState.fresh(structures.num_structures)
        self.learned = Learned(self.model, structures, feels=False)
        watching = self._watching() if watches else None
        self.calibrated = Calibrated(OnceStructureZero(), self.learned, self._learn, watching)

    def _watching(self) -> TrainingBatches:
        return TrainingBatches(self.model, 2, INPUTS, rounds=(FIRST,), step=lambda: self.step)

    def _learn(self, kept: Sequence[Any]) -> None:
        self.read.append(len(kept))
        self.learned.learn(kept)

    def go(self, last: int) -> None:
        while self.step <= last:
            self.model(DATA[self.step - 1])
            self.calibrated.follow()
            self.step += 1


def test_it_learns_once_at_the_step_for_it_and_lets_go() -> None:
    training = Training(watches=True)
    training.go(FIRST - 1)
    assert training.read == []
    assert [training.calibrated.keeps(step) for step in range(1, 5)] == [False, True, True, False]
    training.go(FIRST + 1)
    assert training.read == [2]
    assert not training.model._forward_pre_hooks
    assert not training.calibrated.keeps(FIRST)


def test_without_a_loop_to_watch_nothing_is_kept() -> None:
    training = Training(watches=False)
    training.go(FIRST)
    assert training.read == []
    assert not training.calibrated.keeps(FIRST)
    assert set(training.calibrated.state_dict()) == {"compensation", "learned"}
    training.calibrated.close()


def test_closing_lets_go_of_the_model() -> None:
    training = Training(watches=True)
    training.calibrated.close()
    assert not training.model._forward_pre_hooks
    training.go(FIRST)
    assert training.read == []


def test_a_state_goes_on_elsewhere() -> None:
    one, other = Training(watches=True), Training(watches=True)
    one.go(FIRST - 1)
    other.model.load_state_dict(one.model.state_dict())
    other.calibrated.load_state_dict(copy.deepcopy(one.calibrated.state_dict()))
    other.step = one.step
    for training in (one, other):
        training.go(FIRST)
    expected, found = one.learned.state_dict(), other.learned.state_dict()
    torch.testing.assert_close(found, expected)
    assert found["moments"]


def picked(training: Training) -> list[tuple[Tensor, ...]]:
    """Weights before and after what leaves is taken over."""
    weights = [tuple(p.detach().clone() for p in training.model.parameters())]
    training.calibrated.selector.select(training.fresh, FIRST, {}, released=False)
    training.calibrated.selector.settle()
    return [*weights, tuple(p.detach().clone() for p in training.model.parameters())]


def test_what_is_picked_is_taken_over_by_the_others() -> None:
    training = Training(watches=True)
    training.go(FIRST)
    before, after = picked(training)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert any(changed)
    assert len(training.calibrated.state_dict()["compensation"]["taken"]) >= 1


def test_of_a_refused_state_nothing_is_taken() -> None:
    training, other = Training(watches=True), Training(watches=True)
    training.go(FIRST)
    picked(training)
    bad = copy.deepcopy(training.calibrated.state_dict())
    bad["learned"]["sensitivity"] = torch.zeros(1)
    before = copy.deepcopy(other.calibrated.state_dict())
    with pytest.raises(ValueError, match="damaged"):
        other.calibrated.load_state_dict(bad)
    assert other.calibrated.state_dict() == before


def test_a_step_that_was_never_called_for_is_told() -> None:
    training = Training(watches=True)
    training.model = nn.Identity()  # type: ignore[assignment]
    training.step = FIRST
    with pytest.raises(RuntimeError, match="calibrate=loader"):
        training.calibrated.follow()
