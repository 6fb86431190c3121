"""HESSO against its slow twin, its published trajectory, and what holding and releasing add."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import decayprune as dp
from cases import CASES
from decayprune.hosts import HESSO
from loops import backward, batches
from oto_nets import GROUPS, X, double_net, kinds, own_norms, pruned, train
from reference.hesso import SlowHESSO

VARIANTS = [("sgd", 0.0, 0.05), ("sgd", 0.9, 0.02), ("adam", 0.0, 0.005), ("adamw", 0.0, 0.005)]
RELEASE_ALL = dp.Rectify(rule="thresholds", t_rate=-1.0, t_len=-1e9, warm_up=0.5, cool_down=0.5)


def host(model: torch.nn.Module | None = None, lr: float = 0.05, **options: Any) -> HESSO:
    usual = {"start_step": 2, "pruning_steps": 12, "pruning_periods": 2}
    return HESSO(model or double_net(), X, lr, **(usual | options))


@pytest.mark.parametrize(("variant", "momentum", "lr"), VARIANTS)
def test_follows_the_slow_twin(variant: Any, momentum: float, lr: float) -> None:
    ours, theirs = double_net(), double_net()
    fast = HESSO(
        ours, X, lr, variant=variant, momentum=momentum, weight_decay=1e-2, start_step=3,
        pruning_steps=20, pruning_periods=3, target_group_sparsity=0.7,
    )  # fmt: skip
    parameters = dict(theirs.named_parameters())
    slow = SlowHESSO(
        parameters, GROUPS, lr=lr, variant=variant, momentum=momentum, weight_decay=1e-2,
        target=0.7, start_step=3, pruning_steps=20, periods=3,
    )  # fmt: skip
    for batch in batches(26):
        backward(ours, batch)
        fast.step()
        fast.zero_grad()
        backward(theirs, batch)
        slow.step()
        for p in parameters.values():
            p.grad = None
        for name, p in ours.named_parameters():
            torch.testing.assert_close(p, parameters[name], rtol=1e-9, atol=1e-11)
    assert len(slow.pruned) == 21
    assert pruned(fast) == {(len(GROUPS[i]), j) for i, j in slow.pruned}
    assert fast.finished


def test_the_published_decay_is_linear_where_nothing_trains() -> None:
    """With lr = 0: one part in period - 1 each step, exact zeros in the last."""
    model = double_net()
    optimizer = host(model, lr=0.0, start_step=0, pruning_steps=8, pruning_periods=1)
    before = own_norms(optimizer)
    for step in range(1, 8):
        train(model, optimizer, 1, first=step)
        picked = optimizer.lifecycle.committed
        expected = torch.where(picked, before * (1 - step / 7), before)
        torch.testing.assert_close(own_norms(optimizer), expected, rtol=1e-9, atol=1e-15)
    assert int((own_norms(optimizer) == 0).sum()) == 15


def test_decay_steps_hold_the_norm_whatever_training_does() -> None:
    model = double_net()
    optimizer = host(model, lr=0.1, decay_steps=5, slices="all")
    train(model, optimizer, 3)
    ids = optimizer.lifecycle.decaying
    start = optimizer.lifecycle.start_length[ids].double()
    for age in (2, 3, 4, 5):
        train(model, optimizer, 1, first=age)
        found = own_norms(optimizer, carriers=True)[ids]
        torch.testing.assert_close(found, start * (1 - age / 5), rtol=1e-5, atol=1e-7)


def test_released_structures_are_replaced_and_the_target_is_met() -> None:
    model = double_net()
    optimizer = host(model, decay_steps=4, rectify=RELEASE_ALL)
    train(model, optimizer, 20)
    assert kinds(optimizer)["release"] > 5
    assert optimizer.finished
    assert optimizer.remaining()["structures"] == 0.5
    assert max(e.step for e in optimizer.events if e.kind == "release") < 2 + 12


def test_the_tournament_enrols_more_and_releases_down_to_the_target() -> None:
    model = double_net()
    optimizer = host(model, decay_steps=4, rectify=dp.Rectify(extra=0.5), pruning_periods=1)
    train(model, optimizer, 3)
    assert kinds(optimizer) == {"decay": 23}
    train(model, optimizer, 12, first=3)
    assert kinds(optimizer) == {"decay": 23, "release": 8, "prune": 15}


def test_budget_is_met_in_instalments() -> None:
    model = double_net()
    optimizer = host(model, budget=dp.Budget(macs=0.4))
    train(model, optimizer, 3)
    assert 0.5 < optimizer.remaining()["macs"] <= 0.7
    train(model, optimizer, 12, first=3)
    assert optimizer.finished
    report = optimizer.compact()
    assert 0.38 < report.macs_after / report.macs_before <= 0.4


def test_a_verdict_that_falls_on_the_next_period_still_releases() -> None:
    """Half a decay is as long as a period: who is judged goes before the next are picked."""
    model = double_net()
    optimizer = host(
        model, pruning_steps=12, pruning_periods=3, decay_steps=8, rectify=dp.Rectify(extra=0.5)
    )
    train(model, optimizer, 24)
    released = {event.step for event in optimizer.events if event.kind == "release"}
    assert {3 + 4, 3 + 8} <= released
    assert optimizer.finished
    assert optimizer.remaining()["structures"] == 0.5


def test_divisible_widths_still_meet_the_count() -> None:
    model = double_net()
    optimizer = host(model, group_divisible=4, target_group_sparsity=0.3)
    train(model, optimizer, 14)
    assert optimizer.finished
    report = optimizer.compact()
    assert report.removed >= 9
    assert all(after % 4 == 0 or after == before for _, before, after in report.widths)


def test_rows_behind_a_concat_shrink_with_their_producer_only() -> None:
    """The published code once scaled whole auxiliary norms."""
    model, inputs = CASES["dense"]()
    optimizer = HESSO(
        model, inputs, 0.0, pruning_steps=4, pruning_periods=1, target_group_sparsity=0.3
    )
    for _ in range(3):
        model(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    gone = int(optimizer.lifecycle.pruned.sum())
    assert gone == int(optimizer.structures.num_structures * 0.3)
    assert int((model.n3.weight == 0).sum()) == gone
    assert optimizer.compact().max_rel_error <= 1e-9


@pytest.mark.parametrize("name", ["sigmoid", "no_affine"])
def test_what_is_not_zero_invariant_is_refused(name: str) -> None:
    model, inputs = CASES[name]()
    optimizer = HESSO(model, inputs, 0.1, pruning_steps=4)
    assert optimizer.structures.num_structures == 4  # the second convolution's
    assert any("not zero-invariant" in r.reason for r in optimizer.structures.refusals)


def test_resumes_bit_for_bit_in_mid_decay() -> None:
    options: dict[str, Any] = {"variant": "adam", "decay_steps": 5, "rectify": RELEASE_ALL}
    model = double_net()
    optimizer = host(model, lr=0.01, **options)
    train(model, optimizer, 6)
    assert optimizer.lifecycle.decaying.numel()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 14, first=6)

    again = double_net(seed=2)
    second = host(again, lr=0.01, **options)
    again.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    train(again, second, 14, first=6)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.events == optimizer.events
    assert second.finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_periods": 0}, "pruning_periods"),
        ({"pruning_steps": 1}, "pruning_steps"),
        ({"start_step": -1}, "start_step"),
        ({"target_group_sparsity": 0.95}, "cannot be reached"),
        ({"lr": -1.0}, "lr"),
        ({"group_divisible": 0}, "group_divisible"),
    ],
)
def test_bad_arguments_say_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        host(**options)
