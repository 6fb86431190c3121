import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from decayprune.app.run.methods import HOSTS, Plan, Pruning, build
from decayprune.cost import Budget
from decayprune.hosts import TickTock
from decayprune.selection.schedule import Schedule

EXAMPLE = torch.zeros(1, 1, 6, 6)
OPTIONS: dict[str, dict[str, Any]] = {
    "dhspg": {"lmbda": 2.0},
    "depgraph": {"iterative_steps": 50},
    "depgraph-sl": {"iterative_steps": 50, "reg": 1e-2},
    "gate-decorator": {"schedule": TickTock(tick_steps=2, tock_steps=2, ticks=3, share=0.1)},
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU()]
    layers += [nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, 3))


def pruning(host: str, model: nn.Sequential, start: int = 4) -> Pruning:
    options = dict(OPTIONS.get(host, {}))
    if host.startswith("depgraph"):
        options["ignored_layers"] = [model[-1]]
    schedule = Schedule(start=start, stop=start + 6, rounds=1, decay_steps=2)
    plan = Plan(
        host=host, budget=Budget(macs=0.6), schedule=schedule, rectify=None, options=options
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    return build(plan, model, EXAMPLE, optimizer)


def backward(model: nn.Module) -> None:
    images = torch.randn(8, 1, 6, 6)
    F.cross_entropy(model(images), torch.arange(8) % 3).backward()


@pytest.mark.parametrize("host", HOSTS)
def test_one_loop_prunes_with_every_host(host: str) -> None:
    model = network()
    found = pruning(host, model)
    for _ in range(60):
        backward(model)
        found.observe()
        found.optimizer.step()
        found.step()
        found.optimizer.zero_grad()
        if found.host.finished:
            break
    assert found.host.lifecycle.committed.any()
    report = found.host.compact()
    assert report.macs_after <= 0.6 * report.macs_before
    assert model(EXAMPLE).shape == (1, 3)


@pytest.mark.parametrize("host", HOSTS)
def test_what_takes_the_place_of_the_optimizer_trains_in_the_same_way(host: str) -> None:
    found = pruning(host, network())
    instead = host in ("dhspg", "hesso")
    assert (found.host is found.optimizer) == instead
    assert (found.state_dict() == {}) == instead
    (group,) = found.optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.9, 1e-4)


def test_sparse_learning_penalises_up_to_the_first_round() -> None:
    model = network()
    found = pruning("depgraph-sl", model, start=3)
    penalised = []
    for _ in range(5):
        backward(model)
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.observe()
        after = [p.grad for p in model.parameters() if p.grad is not None]
        penalised.append(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        found.optimizer.step()
        found.step()
        found.optimizer.zero_grad()
    assert penalised == [True, True, True, False, False]
    assert pruning("depgraph", network()).penalty is None


def test_without_torch_pruning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match=r"host depgraph needs .*'decayprune\[torch-pruning\]'"):
        pruning("depgraph", network())
