"""Latency from a table, with machines whose clock counts what it pleases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import decayprune as dp
from decayprune.cost import CostModel
from decayprune.latency.estimate import LatencyModel, wall_clock
from decayprune.structures.tracing.trace import trace
from living import Living
from loops import INPUTS, OPTIMIZERS, Net, net, pruner_for, same, train

STEPS = 22


def flops(call: Callable[[], object]) -> float:
    """A machine that takes time for multiply-accumulates alone."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1000


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 3, padding=1, bias=False)
        self.deep = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.point = nn.Conv2d(40, 24, 1)
        self.fc = nn.Linear(24 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.deep(self.stem(x)).relu())
        return self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))


@pytest.mark.parametrize("make", [net, Depthwise])
def test_where_only_macs_take_time_latency_is_macs(make: Callable[[], nn.Module]) -> None:
    """Multiply-accumulates are bilinear in the widths, so interpolation is exact."""
    model = make()
    structures = trace(model, INPUTS)
    cost = CostModel(structures, {n: p.shape for n, p in model.named_parameters()})
    latency = LatencyModel(model, structures, INPUTS, flops)
    assert latency.table.rest == pytest.approx(0, abs=1e-6)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        kept = (torch.rand(cost.sizes.shape, generator=generator) * cost.sizes).long() + 1
        found = latency(kept.minimum(cost.sizes)) / latency(cost.sizes)
        assert found == pytest.approx(cost.fractions(kept, ["macs"])["macs"], rel=1e-4)


@pytest.mark.parametrize("fixed", [0.0, 4.0, 10.0])
def test_what_is_no_layer_shrinks_with_the_activations_or_stays(fixed: float) -> None:
    model = net()
    structures = trace(model, INPUTS)

    def timer(call: Any) -> float:
        if not isinstance(call.func, Net):  # layers are free
            return 0.0
        whole = call.func.stem[0].weight.shape[0] == 12  # or halved
        return 10.0 if whole else (fixed + 10) / 2

    latency = LatencyModel(model, structures, INPUTS, timer)
    sizes = torch.tensor([group.size for group in structures.groups])
    assert latency(sizes) == 10
    half = latency((sizes + 1) // 2)
    assert half == pytest.approx((fixed + 10) / 2, rel=0.01)
    assert latency(sizes // 6) == pytest.approx(fixed + (10 - fixed) / 6, abs=1)


@pytest.mark.parametrize("slower", [0.8, 1.0, 1.3])
def test_a_model_that_gains_less_than_its_layers_is_met_at_half_its_widths(slower: float) -> None:
    """Layers timed alone find their weights in the cache; in a row they may not."""
    model = net()
    structures = trace(model, INPUTS)

    def timer(call: Any) -> float:
        halved = isinstance(call.func, Net) and call.func.stem[0].weight.shape[0] < 12
        return flops(call) * (slower if halved else 1.0)

    latency = LatencyModel(model, structures, INPUTS, timer)
    plain = LatencyModel(model, structures, INPUTS, flops)
    sizes = torch.tensor([group.size for group in structures.groups])
    half, quarter = (sizes + 1) // 2, (sizes + 3) // 4
    assert latency(sizes) == plain(sizes)
    known = max(slower, 1)  # nothing is faster than the sum of its parts: a clock that shook
    assert latency(half) == pytest.approx(known * plain(half))
    assert latency(quarter) == pytest.approx(known * plain(quarter))
    between = latency((3 * sizes + 3) // 4) / plain((3 * sizes + 3) // 4)
    assert 1 <= between <= known


def test_layers_that_are_slower_alone_than_together_are_scaled() -> None:
    model = net()
    structures = trace(model, INPUTS)
    latency = LatencyModel(
        model,
        structures,
        INPUTS,
        lambda call: flops(call) * (1 if isinstance(call.func, Net) else 3),
    )
    sizes = torch.tensor([group.size for group in structures.groups])
    assert latency(sizes) == pytest.approx(flops(lambda: model(INPUTS)))


def test_a_shaky_clock_never_makes_wider_faster() -> None:
    model = net()
    structures = trace(model, INPUTS)
    shaky = torch.Generator().manual_seed(0)
    latency = LatencyModel(
        model, structures, INPUTS, lambda call: float(torch.rand(1, generator=shaky)) + 1
    )
    sizes = torch.tensor([group.size for group in structures.groups])
    times = [latency((sizes * share / 12).long()) for share in range(1, 13)]
    assert times == sorted(times)


def test_building_a_table_changes_nothing() -> None:
    model = net()
    living = Living(model)
    LatencyModel(model, trace(model, INPUTS), INPUTS, flops)
    living.check()


def test_like_layers_are_timed_once() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    timed: list[Any] = []
    inputs = torch.ones(2, 16)
    LatencyModel(model, trace(model, inputs), inputs, lambda call: timed.append(call) or 1.0)
    # Widths 8 and 16: first layer (out), middle layers (both), last layer (in), the model
    # three times whole and three times halved.
    assert len(timed) == 2 + 4 + 2 + 6


class TestPruner:
    """``Budget(latency=...)``, on the machine that counts multiply-accumulates."""

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LatencyModel.__init__, "__defaults__", (flops,))

    def test_the_budget_is_met(self) -> None:
        model = net()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        pruner = pruner_for(model, optimizer, budget=dp.Budget(latency=0.5))
        dense = flops(lambda: model.eval()(INPUTS))
        train(model.train(), optimizer, STEPS, pruner)
        assert pruner.finished
        remaining = pruner.remaining()["latency"]
        assert 0.4 < remaining <= 0.5
        pruner.compact()
        assert flops(lambda: model.eval()(INPUTS)) / dense == pytest.approx(remaining, rel=1e-4)

    @pytest.mark.parametrize("power", [0.6, 1.5])
    def test_it_is_met_where_a_row_of_layers_takes_other_times_than_its_parts(
        self, power: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The widths that the estimate leads to are measured, and the estimate is bent to them."""

        def timer(call: Any) -> float:
            return flops(call) ** (power if isinstance(call.func, Net) else 1)

        monkeypatch.setattr(LatencyModel.__init__, "__defaults__", (timer,))
        model = net()
        dense = flops(lambda: model.eval()(INPUTS)) ** power
        optimizer = OPTIMIZERS["SGD"](model.train().parameters())
        pruner = pruner_for(model, optimizer, budget=dp.Budget(latency=0.5), floor=0.0)
        train(model, optimizer, STEPS, pruner)
        pruner.compact()
        assert flops(lambda: model.eval()(INPUTS)) ** power / dense == pytest.approx(0.5, abs=0.06)

    def test_together_with_others(self) -> None:
        model = net()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        budget = dp.Budget(latency=0.9, params=0.4)
        pruner = pruner_for(model, optimizer, budget=budget)
        train(model, optimizer, STEPS, pruner)
        assert pruner.remaining()["params"] <= 0.4
        assert pruner.remaining()["latency"] <= 0.9

    def test_an_impossible_one_says_what_can_be_reached(self) -> None:
        model = net()
        with pytest.raises(ValueError, match=r"latency=0\.001 cannot be reached.*latency=0\.\d"):
            pruner_for(model, OPTIMIZERS["SGD"](model.parameters()), budget=dp.Budget(latency=1e-3))

    def test_resuming_takes_the_measurements_along(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = net()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        pruner = pruner_for(model, optimizer, budget=dp.Budget(latency=0.5))
        train(model, optimizer, 5, pruner)
        saved = copy.deepcopy([x.state_dict() for x in (model, optimizer, pruner)])
        train(model, optimizer, STEPS, pruner, first=5)

        monkeypatch.setattr(
            LatencyModel.__init__, "__defaults__", (lambda call: flops(call) ** 0.9,)
        )
        other = net(7)
        again = OPTIMIZERS["SGD"](other.parameters())
        resumed = pruner_for(other, again, budget=dp.Budget(latency=0.5))
        for one, state in zip((other, again, resumed), saved, strict=True):
            one.load_state_dict(state)
        train(other, again, STEPS, resumed, first=5)
        assert same(model, other)
        assert resumed.events == pruner.events


def test_measurements_of_the_format_that_a_model_came_in_are_taken_up() -> None:
    model = net()
    structures = trace(model, INPUTS)

    def prefers_channels_last(call: Any) -> float:
        last = call.args[0].dim() == 4 and not call.args[0].is_contiguous()
        return flops(call) / (2 if last else 1)

    old = LatencyModel(model, structures, INPUTS, flops)
    new = LatencyModel(model, structures, INPUTS, prefers_channels_last)
    assert (old.memory_format, new.memory_format) == (torch.contiguous_format, torch.channels_last)
    sizes = torch.tensor([group.size for group in structures.groups])
    assert new(sizes) == pytest.approx(old(sizes) / 2)
    new.load_state_dict(old.state_dict())
    assert new(sizes) == old(sizes)
    with pytest.raises(ValueError, match="do not fit"):
        new.load_state_dict({"layers": {}})


def test_whoever_does_not_measure_says_so() -> None:
    model = net()
    cost = CostModel(trace(model, INPUTS), {n: p.shape for n, p in model.named_parameters()})
    with pytest.raises(ValueError, match=r"only dp\.DecayPruner makes; bound macs"):
        cost.meets(dp.Budget(latency=0.5), cost.sizes)


def test_the_clock_measures() -> None:
    wide, narrow = torch.ones(600, 600), torch.ones(60, 60)
    assert wall_clock(lambda: wide @ wide) > wall_clock(lambda: narrow @ narrow) > 0
