"""What goes wrong beside a loop is noticed at the step where it does, and its cause is named."""

from __future__ import annotations

import gc
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import decayprune as dp
from decayprune.structures import edits
from loops import OPTIMIZERS, backward, batches, net, pruner_for, same, train


def run(seed: int = 1, **options: object) -> SimpleNamespace:
    model = net(seed)
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer, **options)
    return SimpleNamespace(model=model, optimizer=optimizer, pruner=pruner)


@pytest.mark.parametrize("rectify", [dp.Rectify(), None])
def test_a_pruner_that_steps_before_the_optimizer(rectify: dp.Rectify | None) -> None:
    one = run(rectify=rectify)

    def wrong_order() -> None:
        for batch in batches(3):
            one.optimizer.zero_grad()
            backward(one.model, batch)
            one.pruner.step()
            one.optimizer.step()

    with pytest.raises(RuntimeError, match=r"gradients have changed since optimizer\.step") as c:
        wrong_order()
    assert "loss.backward(); optimizer.step(); pruner.step(); optimizer.zero_grad()" in str(c.value)
    assert one.pruner.steps == 0


def test_gradients_that_were_zeroed_first() -> None:
    one = run()
    (batch,) = batches(1)
    backward(one.model, batch)
    one.optimizer.step()
    one.optimizer.zero_grad(set_to_none=False)
    with pytest.raises(RuntimeError, match=r"every \.grad is zero: was zero_grad\(\) called first"):
        one.pruner.step()


def test_smooth_pruning_alone_does_not_mind() -> None:
    one, other = run(rectify=None), run(rectify=None)
    for batch in batches(12):
        backward(one.model, batch)
        one.optimizer.step()
        one.optimizer.zero_grad(set_to_none=False)
        one.pruner.step()
    train(other.model, other.optimizer, 12, other.pruner)
    assert one.pruner.steps == 12
    assert same(one.model, other.model)


def test_the_same_gradients_over_and_over_are_no_mistake() -> None:
    one = run()
    (batch,) = batches(1)
    backward(one.model, batch)
    for _ in range(25):
        one.optimizer.step()
        one.pruner.step()
    assert one.pruner.steps == 25


def test_another_optimizer_is_noticed() -> None:
    one = run()
    train(one.model, one.optimizer, 3, one.pruner)
    other = torch.optim.Adam(one.model.parameters())
    with pytest.raises(RuntimeError, match="SGD, which this pruner was built with, does not step"):
        train(one.model, other, 2, one.pruner)
    assert one.pruner.steps == 3
    train(one.model, one.optimizer, 27, one.pruner, first=3)  # back to the first one, it goes on
    assert one.pruner.finished


def test_weights_that_are_loaded_between_two_steps_are_not_taken_for_another_optimizer() -> None:
    one = run()
    for batch in batches(6):
        kept = {name: value.clone() for name, value in one.model.state_dict().items()}
        one.model.load_state_dict(kept)  # say, averages that came and went
        backward(one.model, batch, 0.5)
        one.pruner.step()
        backward(one.model, batch, 0.5)
        one.pruner.step()
        one.optimizer.step()
        one.pruner.step()
        one.optimizer.zero_grad()
    assert one.pruner.steps == 6


def test_skipped_steps_are_not_taken_for_another_optimizer() -> None:
    """Fused optimizers are called where GradScaler skips, and count it as a write."""
    one = run()
    one.pruner.close()
    one.optimizer = torch.optim.SGD(one.model.parameters(), lr=0.05, fused=True)
    one.pruner = pruner_for(one.model, one.optimizer)
    (batch,) = batches(1)
    one.optimizer.grad_scale = torch.tensor(1.0)
    for _ in range(3):
        backward(one.model, batch)
        one.optimizer.found_inf = torch.tensor(1.0)
        one.optimizer.step()
        one.pruner.step()
    assert one.pruner.steps == 0
    one.optimizer.found_inf = torch.tensor(0.0)
    one.optimizer.step()
    one.pruner.step()
    assert one.pruner.steps == 1


def test_pruned_structures_that_come_back_are_zeroed_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = run(rectify=None)

    def noise() -> None:
        with torch.no_grad():
            for parameter in one.model.parameters():
                parameter += 1e-3

    with caplog.at_level(logging.WARNING, "decayprune"):
        for batch in batches(40):
            backward(one.model, batch)
            one.optimizer.step()
            noise()
            one.pruner.step()
            one.optimizer.zero_grad()
    told = [record.getMessage() for record in caplog.records]
    assert told
    assert all("are zero no longer" in line and "channel" in line for line in told)
    assert one.pruner.compact().removed > 0


def test_pin_zeroes_from_the_start(caplog: pytest.LogCaptureFixture) -> None:
    one = run(rectify=None, pin=True)
    with caplog.at_level(logging.WARNING, "decayprune"):
        for batch in batches(40):
            backward(one.model, batch)
            one.optimizer.step()
            with torch.no_grad():
                one.model.fc.weight += 1e-3
            one.pruner.step()
            one.optimizer.zero_grad()
    assert not caplog.records
    assert one.pruner.compact().removed > 0


def test_an_interrupt_in_a_step_leaves_a_run_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at every call that writes to weights, at every step of the run."""
    names = ("scale_", "zero_")
    whole, calls = run(), 0
    for name in names:
        counted = getattr(edits, name)

        def count(*args: object, whole: object = counted) -> None:
            nonlocal calls
            calls += 1
            whole(*args)  # type: ignore[operator]

        monkeypatch.setattr(edits, name, count)
    train(whole.model, whole.optimizer, 30, whole.pruner)
    monkeypatch.undo()
    for at in range(calls):
        one, number = run(), 0
        for name in names:
            original = getattr(edits, name)

            def interrupt(*args: object, original: object = original, at: int = at) -> None:
                nonlocal number
                number += 1
                if number - 1 == at:
                    raise KeyboardInterrupt
                original(*args)  # type: ignore[operator]

            monkeypatch.setattr(edits, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(one.model, one.optimizer, 30, one.pruner)
        monkeypatch.undo()
        one.optimizer.zero_grad()
        train(one.model, one.optimizer, 31, one.pruner)
        assert one.pruner.finished
        assert one.pruner.compact().removed > 0


def test_hooks_of_a_forgotten_pruner_go_with_it() -> None:
    one = run()
    for _ in range(3):
        one.pruner = None
        gc.collect()
        assert not one.optimizer._optimizer_step_pre_hooks
        assert not one.optimizer._optimizer_step_post_hooks
        one.pruner = pruner_for(one.model, one.optimizer)
    assert len(one.optimizer._optimizer_step_pre_hooks) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_without_gradients_training_gives_nothing_back(dtype: torch.dtype) -> None:
    """Rounding of half precision is no answer of the training to the decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        torch.zeros(1, 8, dtype=dtype),
        budget=dp.Budget(macs=0.5),
        schedule=dp.Schedule(stop=1, decay_steps=30),
    )
    x, y = torch.randn(16, 8, dtype=dtype), torch.randint(4, (16,))
    for _ in range(20):
        F.cross_entropy(model(x).float(), y).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    state = pruner.lifecycle
    given, taken = state.statistics.given, state.statistics.taken
    assert (taken[state.decaying] > 0).all()
    assert float((given[state.decaying] / taken[state.decaying]).abs().max()) < 1e-3
