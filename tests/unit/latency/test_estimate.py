"""Latency as a share, with machines that take the time they please."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import decayprune as dp
from decayprune.cost import CostModel
from decayprune.latency import hardware
from decayprune.latency.estimate import LatencyModel, Timer, raced
from decayprune.latency.form import Form
from decayprune.structures.tracing.trace import trace
from decayprune.surgery.cut import cut
from decayprune.surgery.undo import Undo
from living import Living
from loops import INPUTS, OPTIMIZERS, net, pruner_for, same, train

STEPS = 22
CPU = torch.device("cpu")


def flops(call: Callable[[], object]) -> float:
    """A machine that takes time for multiply-accumulates alone."""
    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1000


def machine(power: float = 1.0, overhead: float = 0.0, asked: list[float] | None = None) -> Timer:
    """A machine whose time is a power of the work, and a part of the dense model's on top."""

    def compare(
        after: Sequence[Callable[[], object]],
        before: Sequence[Callable[[], object]],
        device: torch.device,
    ) -> float:
        old, new = min(map(flops, before)), min(map(flops, after))
        share = overhead + (1 - overhead) * (new / old) ** power
        if asked is not None:
            asked.append(share)
        return share

    return compare


def measured(model: nn.Module, inputs: Any = INPUTS, timer: Timer | None = None) -> LatencyModel:
    structures = trace(model, inputs)
    cost = CostModel(structures, {n: p.shape for n, p in model.named_parameters()})
    return LatencyModel(model, structures, inputs, cost, timer or machine())


def sizes_of(model: nn.Module) -> Tensor:
    return torch.tensor([group.size for group in trace(model, INPUTS).groups])


@pytest.mark.parametrize("timer", [machine(), machine(0.6), machine(1.5), machine(1.0, 0.4)])
def test_what_was_measured_is_what_is_estimated(timer: Timer) -> None:
    """Whatever a machine adds to the work: it is met where it was asked."""
    model = net()
    latency, sizes = measured(model, timer=timer), sizes_of(model)
    assert latency(sizes) == 1
    asked: list[float] = []

    def spy(*args: Any) -> float:
        asked.append(timer(*args))
        return asked[-1]

    latency = measured(model, timer=spy)
    assert latency(-(-sizes // 8)) == pytest.approx(asked[0])
    half = (sizes + 1) // 2
    latency.refine(lambda: half)
    assert latency(half) == pytest.approx(asked[1])
    assert len(asked) == 3  # the third time it was as expected


def test_what_never_settles_is_measured_a_few_times() -> None:
    asked: list[float] = []
    model = net()
    latency, sizes = measured(model, timer=machine(0.3, asked=asked)), sizes_of(model)
    widths = iter(range(2, 12))
    latency.refine(lambda: sizes * next(widths) // 12)
    assert len(asked) == 1 + 5


@pytest.mark.parametrize("overhead", [0.0, 0.5])
def test_widths_below_those_measured_follow_the_line(overhead: float) -> None:
    """So that a budget below is refused only where a machine cannot reach it."""
    model = net()
    latency = measured(model, timer=machine(overhead=overhead))
    one = torch.ones_like(sizes_of(model))
    assert overhead - 0.02 <= latency(one) <= latency(one * 2) < latency(sizes_of(model))


def test_a_machine_that_shakes_never_makes_wider_faster() -> None:
    model = net()
    shaky = torch.Generator().manual_seed(0)
    latency = measured(model, timer=lambda *_: float(torch.rand(1, generator=shaky)) * 1.5)
    sizes = sizes_of(model)
    widths = iter(range(2, 12))
    latency.refine(lambda: sizes * next(widths) // 12)
    times = [latency((sizes * share / 12).long()) for share in range(1, 13)]
    assert times == sorted(times)


def test_measuring_changes_nothing() -> None:
    model = net()
    living = Living(model)
    latency = measured(model)
    latency.refine(lambda: sizes_of(model) // 2)
    living.check()


def test_images_are_timed_in_both_formats_without_gradients() -> None:
    model = net().train()

    def compare(after: Sequence[Any], before: Sequence[Any], device: torch.device) -> float:
        assert device == CPU
        assert torch.is_inference_mode_enabled()
        for side in (after, before):
            assert not any(call.func.training for call in side)
            assert [call.args[0].is_contiguous() for call in side] == [True, False]
        wide = [call.func.stem[0].weight.shape[0] for call in (*before, *after)]
        assert wide == [12, 12, 2, 2]
        return 0.5

    measured(model, timer=compare)
    assert model.training


def test_where_a_model_is_deployed_it_is_timed_and_the_dense_one_goes_there_once() -> None:
    model = net().train()
    sent: list[int] = []

    def variants(other: Any, inputs: Any) -> list[Callable[[], object]]:
        assert inputs is INPUTS
        sent.append(other.stem[0].weight.shape[0])
        return [lambda: other.eval()(inputs)]

    def compare(after: Sequence[Any], before: Sequence[Any], device: torch.device) -> float:
        assert (len(after), len(before), device) == (1, 1, CPU)
        return machine(0.6)(after, before, device)

    structures = trace(model, INPUTS)
    cost = CostModel(structures, {n: p.shape for n, p in model.named_parameters()})
    there = Form(variants=variants, device=CPU, hardware=hardware.known("onnxruntime"))
    latency = LatencyModel(model, structures, INPUTS, cost, compare, form=there)
    assert latency.macs_per_value == hardware.known("onnxruntime").macs_per_value
    half = (cost.sizes + 1) // 2
    latency.refine(lambda: half)
    assert sent == [12, 2, 6, 6]
    dense, narrow = (flops(lambda m=m: m.eval()(INPUTS)) for m in (model, halved(model)))
    assert latency(half) == pytest.approx((narrow / dense) ** 0.6)


def halved(model: nn.Module) -> nn.Module:
    structures = trace(model, INPUTS)
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    for group in structures.groups:
        gone[group.start + (group.size + 1) // 2 : group.start + group.size] = True
    other = copy.deepcopy(model)
    cut(Undo(), other, structures, gone)
    return other


def test_models_race_in_their_faster_variants() -> None:
    wide, narrow = torch.ones(400, 400), torch.ones(100, 100)
    fast, slow = (lambda: narrow @ narrow), (lambda: wide @ wide)
    assert raced([slow, fast], [slow], CPU) < 0.8
    assert raced([slow], [slow, fast], CPU) > 1.2


class TestPruner:
    """``Budget(latency=...)``, on the machine that counts multiply-accumulates."""

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LatencyModel.__init__, "__defaults__", (machine(),))

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
        assert flops(lambda: model.eval()(INPUTS)) / dense == pytest.approx(remaining, rel=0.05)

    @pytest.mark.parametrize("power", [0.6, 1.5])
    def test_it_is_met_where_time_is_not_work(
        self, power: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The widths that the estimate leads to are measured, and the estimate is bent to them."""

        monkeypatch.setattr(LatencyModel.__init__, "__defaults__", (machine(power),))
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

        monkeypatch.setattr(LatencyModel.__init__, "__defaults__", (machine(0.9),))
        other = net(7)
        again = OPTIMIZERS["SGD"](other.parameters())
        resumed = pruner_for(other, again, budget=dp.Budget(latency=0.5))
        for one, state in zip((other, again, resumed), saved, strict=True):
            one.load_state_dict(state)
        train(other, again, STEPS, resumed, first=5)
        assert same(model, other)
        assert resumed.events == pruner.events


class TestState:
    """What is saved of it."""

    def test_another_process_takes_up_what_was_measured(self) -> None:
        model = net()
        one, other = measured(model, timer=machine(0.5)), measured(model, timer=machine(1.5))
        half = sizes_of(model) // 2
        assert one(half) != other(half)
        other.macs_per_value = 7.0
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        assert one(half) == other(half)

    def test_a_table_of_layers_is_passed_over(self) -> None:
        latency = measured(net())
        before = latency.state_dict()
        latency.load_state_dict({"layers": {}, "whole": 1.0})
        assert latency.state_dict() == before

    @pytest.mark.parametrize("state", [None, {}, {"macs_per_value": "x"}, {"macs_per_value": 1.0}])
    def test_what_is_damaged_is_refused(self, state: Any) -> None:
        latency = measured(net())
        before = latency.state_dict()
        with pytest.raises(ValueError, match="measurements of this pruner state are damaged"):
            latency.load_state_dict(state)
        assert latency.state_dict() == before


def test_whoever_does_not_measure_says_so() -> None:
    model = net()
    cost = CostModel(trace(model, INPUTS), {n: p.shape for n, p in model.named_parameters()})
    with pytest.raises(ValueError, match=r"only dp\.DecayPruner makes; bound macs"):
        cost.meets(dp.Budget(latency=0.5), cost.sizes)
