"""What goes wrong beside a loop is noticed at the step where it does, and its cause is named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import decayprune as dp
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


def test_a_cut_at_once_has_nothing_to_release_and_needs_no_gradients() -> None:
    at_once = {"schedule": dp.Schedule.at_once(), "rectify": dp.Rectify()}
    one, other = run(**at_once), run(**at_once)
    (batch,) = batches(1)
    backward(other.model, batch)
    other.optimizer.param_groups[0]["lr"] = 0.0
    for each in (one, other):  # neither moves the weights; the other resists
        each.optimizer.step()
        each.pruner.step()
    assert one.pruner.finished
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.pruner.compact().removed == other.pruner.compact().removed > 0


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
