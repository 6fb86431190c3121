"""A session lives through revived zeros, interrupts and half precision, and leaves no trace."""

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
from loops import OPTIMIZERS, backward, batches, net, pruner_for, train


def run(seed: int = 1, **options: object) -> SimpleNamespace:
    model = net(seed)
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer, **options)
    return SimpleNamespace(model=model, optimizer=optimizer, pruner=pruner)


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
