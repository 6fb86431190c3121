"""What every host promises at the cut: copies go along, wrappers are refused, time is no budget."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from tests.contract import hosts
from tests.contract.hosts import HOSTS, STEPS, Setup, batch, network
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import decayprune as dp
from decayprune.hosts import TorchPruningHost
from decayprune.structures import sums

every_host = pytest.mark.parametrize("name", HOSTS)


def train(setup: Setup, model: nn.Module, seed: int) -> None:
    setup.optimizer.zero_grad()
    x, y = batch(seed)
    F.cross_entropy(model(x), y).backward()
    setup.optimizer.step()
    setup.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


@every_host
def test_moving_averages_are_cut_along(name: str) -> None:
    setup = HOSTS[name](network(), 4, None)
    ema = AveragedModel(setup.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for seed in range(STEPS):
        if setup.host.finished:
            break
        train(setup, setup.model, seed)
        ema.update_parameters(setup.model)
    plain, x = copy.deepcopy(setup.model), batch(2000)[0]
    slices = sums.labelled(setup.host.structures, setup.zeroed)
    gone = setup.lifecycle.pruned
    remembered = sums.sum_products(
        slices, setup.host.structures.num_structures, dict(ema.module.named_parameters())
    )
    assert bool((remembered[gone] > 0).any())  # of what the model has lost
    report = setup.host.compact(copies=[ema, plain])
    assert report.removed
    assert same(plain, setup.model)
    assert [p.shape for p in ema.module.parameters()] == [p.shape for p in plain.parameters()]
    assert ema(x).isfinite().all()
    train(setup, setup.model, 3000)
    ema.update_parameters(setup.model)
    with pytest.raises(RuntimeError, match=r"call compact\(copies=\.\.\.\) once"):
        setup.host.compact(copies=ema)
    assert setup.host.compact() is report


@every_host
def test_nothing_is_cut_if_a_copy_does_not_fit(name: str) -> None:
    setup = HOSTS[name](network(), 1, None)
    for seed in range(STEPS):
        if setup.host.finished:
            break
        train(setup, setup.model, seed)
    before = copy.deepcopy(setup.model)
    with pytest.raises(ValueError, match=r"copies\[0\], a Linear, is no copy of this model"):
        setup.host.compact(copies=[nn.Linear(2, 2)])
    assert same(before, setup.model)
    assert setup.host.compact().removed


@every_host
@pytest.mark.usefixtures("alone")
def test_a_living_wrapper_is_refused_at_the_cut(name: str) -> None:
    setup = HOSTS[name](network(), 1, None)
    parallel = DistributedDataParallel(setup.model)
    for seed in range(STEPS):
        if setup.host.finished:
            break
        train(setup, parallel, seed)
    before = copy.deepcopy(setup.model)
    with pytest.raises(RuntimeError, match="DistributedDataParallel still wraps"):
        setup.host.compact()
    assert same(before, setup.model)
    del parallel
    assert setup.host.compact().removed


@pytest.mark.usefixtures("alone")
def test_chunks_cannot_be_cut_inside_a_wrapper() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    pruner = tp.pruner.MetaPruner(
        model,
        batch(0)[0],
        tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        iterative_steps=2,
        ignored_layers=[model.head],
    )
    host = TorchPruningHost(pruner, optimizer, batch(0)[0])
    setup = Setup(model.train(), optimizer, host)
    parallel = DistributedDataParallel(model)
    with pytest.raises(RuntimeError, match=r"The 2 chunks are cut .* with chunks=1, and delete"):
        train(setup, parallel, 0)
    del parallel
    train(setup, model, 1)


@every_host
def test_a_budget_of_another_kind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "Budget", lambda macs: macs)
    with pytest.raises(TypeError, match=r"budget is a Budget, such as .*; found 0\.6"):
        HOSTS[name](network(), 4, None)


@every_host
def test_a_latency_budget_is_refused_before_anything_is_trained(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "Budget", lambda macs: dp.Budget(latency=macs))
    model = network()
    before = copy.deepcopy(model)
    match = r"latency budget .* only dp\.DecayPruner makes; bound macs, params or structures"
    with pytest.raises(ValueError, match=match):
        HOSTS[name](model, 4, None)
    assert same(before, model)
