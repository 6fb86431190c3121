"""DHSPG against its slow twin, and what smooth pruning and rectifying make of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import decayprune as dp
from decayprune.hosts import DHSPG
from loops import backward, batches
from oto_nets import GROUPS, X, double_net, kinds, own_norms, place, pruned, train
from reference.dhspg import SlowDHSPG

# variant, momentum, learning rate, base strength: strong enough to catch something soon
VARIANTS = [
    ("sgd", 0.0, 0.05, 0.5),
    ("sgd", 0.9, 0.02, 1.0),
    ("adam", 0.0, 0.005, 1.0),
    ("adamw", 0.0, 0.005, 1.0),
]
EASY: dict[str, Any] = {"lmbda": 1.0, "epsilon": 0.95, "start_step": 2}
NEVER_RELEASE = dp.Rectify(rule="thresholds", t_rate=1.0)
ALWAYS_RELEASE = dp.Rectify(rule="thresholds", t_rate=-1.0, t_len=-1e9, warm_up=0.5, cool_down=3)


def host(model: torch.nn.Module | None = None, **options: Any) -> DHSPG:
    return DHSPG(model or double_net(), X, 0.05, **(EASY | options))


@pytest.mark.parametrize("divisible", [1, 4])
@pytest.mark.parametrize(("variant", "momentum", "lr", "lmbda"), VARIANTS)
def test_follows_the_slow_twin(
    variant: Any, momentum: float, lr: float, lmbda: float, divisible: int
) -> None:
    ours, theirs = double_net(), double_net()
    fast = DHSPG(
        ours, X, lr, variant=variant, momentum=momentum, weight_decay=1e-2, lmbda=lmbda,
        epsilon=0.9, target_group_sparsity=0.4, tolerance_group_sparsity=0.2, start_step=3,
        group_divisible=divisible,
    )  # fmt: skip
    parameters = dict(theirs.named_parameters())
    slow = SlowDHSPG(
        parameters, GROUPS, lr=lr, variant=variant, momentum=momentum, weight_decay=1e-2,
        lmbda=lmbda, amplify=fast.penalty.amplify, hat=fast.penalty.hat, epsilon=0.9, target=0.4,
        tolerance=0.2, start_step=3, divisible=divisible,
    )  # fmt: skip
    for batch in batches(30):
        backward(ours, batch)
        fast.step()
        fast.zero_grad()
        backward(theirs, batch)
        slow.step()
        for p in parameters.values():
            p.grad = None
        for name, p in ours.named_parameters():
            torch.testing.assert_close(p, parameters[name], rtol=1e-9, atol=1e-11)
    assert slow.penalised
    assert max(slow.strengths) > lmbda, "the adaptive strength was never raised"
    assert slow.zero, "the projection never caught anything"
    assert pruned(fast) == {(len(GROUPS[i]), j) for i, j in slow.zero}


def test_caught_structures_decay_linearly_and_stay_zero() -> None:
    model = double_net()
    optimizer = host(model, decay_steps=5, slices="all")
    train(model, optimizer, 3)
    optimizer.epsilon = 0.0  # nothing more is caught but what the first step caught
    ids = optimizer.lifecycle.decaying
    assert ids.numel() > 3
    for age in range(2, 6):
        start = optimizer.lifecycle.start_length[ids].double()
        train(model, optimizer, 1, first=1 + age)
        expected = start * (1 - age / 5)
        found = own_norms(optimizer, carriers=True)[ids]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    train(model, optimizer, 3, first=20)
    assert torch.equal(own_norms(optimizer)[ids], torch.zeros(ids.numel(), dtype=torch.float64))


def test_stop_step_enrols_what_is_missing() -> None:
    model = double_net()
    optimizer = DHSPG(model, X, 0.01, start_step=1, stop_step=6, decay_steps=3)  # weak penalty
    train(model, optimizer, 5)
    assert kinds(optimizer) == {}
    train(model, optimizer, 1, first=5)
    assert kinds(optimizer) == {"decay": 15}
    train(model, optimizer, 2, first=6)
    assert optimizer.finished
    assert optimizer.remaining()["structures"] == 0.5


def test_stop_step_enrols_more_for_a_tournament_and_releases_the_costliest() -> None:
    model = double_net()
    rectify = dp.Rectify(extra=0.2)
    optimizer = DHSPG(model, X, 0.01, start_step=1, stop_step=6, decay_steps=4, rectify=rectify)
    train(model, optimizer, 6)
    assert kinds(optimizer) == {"decay": 15 + 3}
    train(model, optimizer, 2, first=6)  # half a decay
    assert kinds(optimizer) == {"decay": 18, "release": 3}
    released = {e.structure for e in optimizer.events if e.kind == "release"}
    work = optimizer.lifecycle.statistics.work
    cost = [e.work for e in optimizer.events if e.kind == "release"]
    assert min(cost) >= float(work[optimizer.lifecycle.decaying].max())
    train(model, optimizer, 2, first=8)
    assert optimizer.finished
    assert optimizer.remaining()["structures"] == 0.5
    assert not released & set(optimizer.lifecycle.committed.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("rectify", "decay_steps"),
    [(NEVER_RELEASE, 4), (dp.Rectify(extra=0.5), 1), (dp.Rectify(extra=0.05), 4)],
    ids=["thresholds", "too short to judge", "less than one"],
)
def test_stop_step_enrols_no_more_than_would_come_back(
    rectify: dp.Rectify, decay_steps: int
) -> None:
    model = double_net()
    optimizer = DHSPG(
        model, X, 0.01, start_step=1, stop_step=6, decay_steps=decay_steps, rectify=rectify
    )
    train(model, optimizer, 6)
    assert kinds(optimizer)["decay"] == 15


def test_without_stop_step_nothing_is_forced() -> None:
    model = double_net()
    optimizer = DHSPG(model, X, 0.01, start_step=1)
    train(model, optimizer, 12)
    assert not optimizer.finished
    with pytest.raises(RuntimeError, match=r"Train until optimizer\.finished is True"):
        optimizer.compact()


def test_budget_replaces_the_count() -> None:
    model = double_net()
    optimizer = host(model, budget=dp.Budget(macs=0.4), stop_step=15)
    train(model, optimizer, 16)
    assert optimizer.finished
    assert 0.3 < optimizer.remaining()["macs"] <= 0.4
    report = optimizer.compact()
    assert report.macs_after / report.macs_before <= 0.4


@pytest.mark.parametrize(
    ("lmbda", "tolerance"),
    [(0.5, 0.0), (10.0, 0.0), (10.0, 0.3)],
    ids=["caught at the end", "caught at once", "more caught than needed"],
)
def test_nothing_that_fits_the_budget_is_left_out(lmbda: float, tolerance: float) -> None:
    for seed in range(3):
        model = double_net(seed=seed)
        optimizer = host(
            model, budget=dp.Budget(macs=0.4), stop_step=15, lmbda=lmbda,
            tolerance_group_sparsity=tolerance,
        )  # fmt: skip
        train(model, optimizer, 20)
        assert optimizer.finished
        kept = optimizer._session.kept()
        for group in (kept < optimizer.cost.sizes).nonzero().flatten().tolist():
            kept[group] += 1
            assert not optimizer._selector.target.met(kept)
            kept[group] -= 1


def test_released_structures_leave_the_penalised_set_and_are_replaced() -> None:
    model = double_net()
    optimizer = host(model, decay_steps=4, rectify=ALWAYS_RELEASE, stop_step=40)
    penalised = None
    for step, batch in enumerate(batches(60)):
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()
        new = {e.structure for e in optimizer.events if e.step == step + 1 and e.kind == "release"}
        if new and penalised is None:
            penalised = optimizer._selector.members
            assert not bool(penalised[list(new)].any())
            assert int(penalised.sum()) >= 15  # as many moved in
    assert penalised is not None, "nothing was ever released"
    assert optimizer.finished
    assert optimizer.remaining()["structures"] == 0.5
    assert max(e.step for e in optimizer.events if e.kind == "release") < 40


def test_resumes_bit_for_bit_in_mid_decay() -> None:
    options = {"decay_steps": 6, "rectify": ALWAYS_RELEASE, "momentum": 0.9, "stop_step": 30}
    model = double_net()
    optimizer = host(model, **options)
    train(model, optimizer, 7)
    assert optimizer.lifecycle.decaying.numel()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 40, first=7)

    again = double_net(seed=2)
    again.load_state_dict(weights)
    second = host(again, **options)
    second.load_state_dict(saved)
    train(again, second, 40, first=7)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.events == optimizer.events
    assert kinds(second)["release"]


def test_compact_keeps_columns_out_of_it_and_the_optimizer_alive() -> None:
    model = double_net()
    optimizer = host(model, momentum=0.9, stop_step=12)
    train(model, optimizer, 12)
    assert optimizer.finished
    columns = model.fc.weight.detach().abs().sum(0)
    assert bool((columns > 0).all())  # the consumers' columns were never touched
    parameters = [id(p) for p in model.parameters()]
    report = optimizer.compact()
    assert report.removed >= 15
    assert report.max_rel_error <= 1e-9
    assert [id(p) for p in model.parameters()] == parameters
    before = model.fc.weight.detach().clone()
    train(model, optimizer, 2, first=12)
    assert not torch.equal(before, model.fc.weight)
    for p in model.parameters():
        assert optimizer.state[p]["momentum_buffer"].shape == p.shape
    assert optimizer.compact() is report


def test_structures_that_are_zero_already_count() -> None:
    """From a checkpoint that was pruned before."""
    model = double_net()
    with torch.no_grad():
        model.c.weight[3], model.c.bias[3] = 0, 0
    optimizer = DHSPG(model, X, 1e-6, start_step=0)
    train(model, optimizer, 1)
    assert pruned(optimizer) == {(8, 3)}
    assert place(optimizer, optimizer.events[-1].structure) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_group_sparsity": 1.0}, "between 0 and 1"),
        ({"target_group_sparsity": 0.6, "group_divisible": 8}, "cannot be reached"),
        ({"budget": dp.Budget(macs=0.001)}, "cannot be reached"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"tolerance_group_sparsity": -0.1}, "tolerance"),
        ({"start_step": 5, "stop_step": 5}, "stop_step"),
        ({"variant": "lamb"}, "variant"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"decay_steps": 0}, "decay_steps"),
        ({"slices": "rows"}, "slices"),
        ({"ignored_layers": ["nothing"]}, "nothing"),
    ],
)
def test_bad_arguments_say_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        host(**options)


def test_a_step_without_gradients_names_the_order() -> None:
    optimizer = host()
    with pytest.raises(RuntimeError, match="zero_grad"):
        optimizer.step()


def test_foreign_states_are_refused() -> None:
    optimizer = host(decay_steps=3)
    with pytest.raises(ValueError, match="plain optimizer"):
        optimizer.load_state_dict(torch.optim.SGD(double_net().parameters(), 0.1).state_dict())
    with pytest.raises(ValueError, match="decay_steps=4"):
        optimizer.load_state_dict(host(decay_steps=4).state_dict())
    with pytest.raises(ValueError, match="another model"):
        optimizer.load_state_dict(host(decay_steps=3, ignored_layers=["c"]).state_dict())


def test_a_closure_is_called_once_with_gradients_on() -> None:
    model = double_net()
    optimizer = host(model)
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        backward(model, next(iter(batches(1))))
        return 1.5

    assert optimizer.step(closure) == 1.5
    assert calls == [True]


def test_a_decay_waits_for_finite_gradients() -> None:
    model = double_net()
    optimizer = host(model, decay_steps=6, rectify=NEVER_RELEASE)
    train(model, optimizer, 5)
    ids = optimizer.lifecycle.decaying
    assert ids.numel()
    age = optimizer.lifecycle.age[ids]
    backward(model, next(iter(batches(1))))
    for p in model.parameters():
        p.grad[:] = float("nan")
    optimizer.step()
    assert optimizer.waited == 1
    assert torch.equal(optimizer.lifecycle.age[ids], age)
