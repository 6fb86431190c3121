"""Every error says what was expected, what was found, and what to do."""

from __future__ import annotations

import copy
import gc
import logging
import re
from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
from benchmarks import accelerator
from decayprune.session import arguments
from loops import INPUTS, OPTIMIZERS, Net, backward, batches, net, pruner_for, same, train


def build(model: nn.Module | None = None, optimizer: Any = None, **options: Any) -> dp.DecayPruner:
    model = net() if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    return pruner_for(model, optimizer, **options)


def words(error: BaseException, *expected: str) -> None:
    for word in expected:
        assert re.search(word, str(error), re.DOTALL), f"{word!r} is not in: {error}"


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"budget": 0.5}, r"budget is a Budget, such as dp\.Budget\(macs=0\.5\); found 0\.5"),
        ({"schedule": 100}, r"schedule is a Schedule, such as .*for_run.*; found 100"),
        ({"rectify": True}, r"rectify is a Rectify, such as .*, or None; found True"),
        ({"ignored_layers": [3]}, r"ignored_layers takes names, .* such as \['fc', .*; found 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_of_another_kind(option: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        build(**option)


def test_numbers_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"a number above 0 and up to 1; found '0\.5'"):
        dp.Budget(macs="0.5")
    with pytest.raises(TypeError, match=r"Schedule\.decay_steps is a whole number .* found 2\.5"):
        dp.Schedule(stop=3, decay_steps=2.5)


def test_several_bounds_out_of_reach_and_widths_that_cannot_be_rounded() -> None:
    budget = dp.Budget(macs=0.5, params=0.001)
    with pytest.raises(ValueError, match=r"The budget macs=0\.5, params=0\.001 cannot be reached"):
        build(budget=budget)
    with pytest.raises(ValueError, match=r"keeps macs=1\. .*lower floor or round_to"):
        build(round_to=1000)


# ---------------------------------------------------------------- example inputs


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.zeros(2, 5, 8, 8), r"\(2, 5, 8, 8\) torch\.float32 on cpu"),
        (torch.zeros(2, 3, 8, 8).double(), r"\(2, 3, 8, 8\) torch\.float64 on cpu"),
        (torch.zeros(2, 3), r"\(2, 3\) torch\.float32"),
        ((), "no tensor"),
    ],
    ids=["channels", "dtype", "dimensions", "none"],
)
def test_inputs_the_model_does_not_run_on(inputs: Any, found: str) -> None:
    model = net()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="does not run on example_inputs") as caught:
        build(model, inputs=inputs)
    words(caught.value, f"Passed: {found}", r"first layer is `stem\.0`", "Pass inputs that")
    assert same(before, model)
    assert not any(module._forward_hooks for module in model.modules())


def test_inputs_on_another_device() -> None:
    with pytest.raises(ValueError, match="example_inputs on the model's device cpu") as caught:
        build(inputs=INPUTS.to("meta"))
    words(caught.value, "found a tensor on meta", r"example_inputs\.to\('cpu'\)")


def test_inputs_that_are_no_inputs() -> None:
    with pytest.raises((TypeError, ValueError), match="example_inputs") as caught:
        build(inputs="images")
    words(caught.value, "example_inputs", "tensor")


# ---------------------------------------------------------------- arguments


def test_nothing_prunable() -> None:
    with pytest.raises(ValueError, match="Nothing in this model can be pruned") as caught:
        build(nn.Linear(4, 3), inputs=torch.zeros(1, 4))
    words(caught.value, "output", r"dp\.inspect\(model, example_inputs\)")
    with pytest.raises(ValueError, match="Nothing in this model can be pruned"):
        build(ignored_layers=["*"])


def test_an_impossible_budget() -> None:
    with pytest.raises(ValueError, match=r"budget macs=0\.001 cannot be reached") as caught:
        build(budget=dp.Budget(macs=0.001))
    words(caught.value, r"keeps macs=0\.\d+", "Raise the budget", "lower floor")


@pytest.mark.parametrize("name", ["fcc", "stem.9", "layer[0-9]*", "A"])
def test_a_name_that_matches_nothing(name: str) -> None:
    with pytest.raises(ValueError, match="name or glob of a layer") as caught:
        build(ignored_layers=[name])
    words(caught.value, f"found {re.escape(repr(name))}, which matches nothing")
    if name == "fcc":
        words(caught.value, "Did you mean 'fc'")


def test_a_module_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"found a Linear that is not part of it.*Pass `model\."):
        build(ignored_layers=[net().fc])


def test_an_optimizer_of_another_model() -> None:
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not hold \d+ of the \d+ parameters") as caught:
        build(net(), other)
    words(caught.value, "the first: ", r"Build it from this model's parameters\(\)")


def test_an_optimizer_of_some_parameters() -> None:
    model = net()
    some = torch.optim.SGD([*model.stem.parameters(), *model.a.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"the first: b\.0\.weight"):
        build(model, some)


def test_what_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer or a list.*found str"):
        build(optimizer="sgd")
    model = net()
    with pytest.raises(ValueError, match="use SGD, Adam or AdamW"):
        build(model, torch.optim.LBFGS(model.parameters()))


def test_what_is_no_model() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, found list"):
        pruner_for([], optimizer)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"importance": "magic"}, "importance is one of 'magnitude'.*or a function.*'magic'"),
        ({"decay": "exponential"}, "decay is 'linear', 'cosine' or a function.*'exponential'"),
        ({"decay": lambda p: 1 - p / 2}, r"must fall from 1 .* to 0 .*found \[1\.0, 0\.5\]"),
        ({"slices": "rows"}, "slices is 'carriers' or 'all', found 'rows'"),
        ({"scope": "layer"}, "scope is one of 'width', 'global', 'local', 'isomorphic'; found"),
        ({"round_to": 0}, "round_to is a whole number of channels from 1, .* found 0"),
        ({"floor": 1.5}, "floor is a share of each layer"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str) -> None:
    model = net()
    with pytest.raises(ValueError, match=match):
        build(model, **options)
    assert build(model).steps == 0  # a failed attempt does not occupy the model


# ---------------------------------------------------------------- order of calls


def test_two_pruners_on_one_model() -> None:
    model = net()
    first = build(model)
    with pytest.raises(RuntimeError, match="Another pruner already works on this model") as caught:
        build(model)
    words(caught.value, r"compact\(\)", r"close\(\)")
    first.close()
    second = build(model)
    del first, second
    gc.collect()
    build(model)  # a forgotten pruner does not occupy its model


def test_a_closed_pruner_leaves_no_hooks() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = build(model, optimizer)
    pruner.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_step_while_attached() -> None:
    pruner = build()
    pruner.attach()
    with pytest.raises(RuntimeError, match="attached to the optimizer and steps by itself") as c:
        pruner.step()
    words(c.value, r"remove the call of pruner\.step\(\)", r"pruner\.detach\(\)")


def test_step_without_gradients() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = build(model, optimizer)
    backward(model, next(iter(batches(1))))
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"every \.grad is None: was zero_grad\(\) called") as c:
        pruner.step()
    words(c.value, r"loss\.backward\(\); optimizer\.step\(\); pruner\.step\(\); .*zero_grad\(\)")
    with pytest.raises(RuntimeError, match=r"every \.grad is None"):
        pruner.observe()


class HalfUsed(nn.Module):
    """What can be pruned is computed and thrown away: it never has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.b(self.a(x))
        return self.used(x)


def test_structures_without_gradients_decay_beside_others_that_have_them() -> None:
    model, inputs = HalfUsed(), torch.randn(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = dp.Schedule(stop=1, decay_steps=2)
    budget = dp.Budget(structures=0.5)
    pruner = dp.DecayPruner(model, optimizer, inputs, budget=budget, schedule=schedule)
    for _ in range(3):
        model(inputs).sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.compact().removed == 4


def test_smooth_pruning_alone_needs_no_gradients() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = build(model, optimizer, rectify=None)
    for batch in batches(20):
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    assert pruner.finished


def test_compact_before_it_is_finished() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = build(model, optimizer)
    train(model, optimizer, 4, pruner)
    before = copy.deepcopy(model)
    decaying = int(pruner.lifecycle.decaying.numel())
    with pytest.raises(RuntimeError, match=r"compact\(\) before the pruner has finished") as c:
        pruner.compact()
    words(
        c.value, f"{decaying} structures still decay at step 4", r"until pruner\.finished is True"
    )
    assert same(before, model)


class TestEditedModel:
    def edited(self, edit: Any) -> tuple[dp.DecayPruner, Net]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pruner = build(model, optimizer)
        train(model, optimizer, 3, pruner)
        backward(model, next(iter(batches(1))))
        optimizer.step()
        edit(model)
        return pruner, model

    def test_a_layer_was_replaced(self) -> None:
        def edit(model: Net) -> None:
            model.c = nn.Conv2d(12, 8, 3)

        with pytest.raises(RuntimeError, match="changed between two steps: 'c' is another") as c:
            self.edited(edit)[0].step()
        words(c.value, "unlike when the pruner was built", "build a new one")

    def test_a_parameter_was_replaced(self) -> None:
        def edit(model: Net) -> None:
            model.b[1].weight = nn.Parameter(torch.ones(12))

        with pytest.raises(RuntimeError, match=r"b\.1\.weight is another parameter"):
            self.edited(edit)[0].step()

    def test_a_parameter_was_resized(self) -> None:
        def edit(model: Net) -> None:
            model.c.weight.grad = None
            model.c.weight.data = torch.zeros(4, 12, 3, 3)

        with pytest.raises(RuntimeError, match=r"changed between two steps: c\.weight"):
            self.edited(edit)[0].step()


# ---------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("rectify", [None, dp.Rectify(extra=0.5)], ids=["smooth", "rectify"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_decay_waits_while_numbers_are_not_finite(
    rectify: dp.Rectify | None, bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = build(model, optimizer, rectify=rectify)
    train(model, optimizer, 4, pruner)
    good = copy.deepcopy(model.state_dict())
    state = {name: value.clone() for name, value in pruner.lifecycle.state_dict().items()}
    backward(model, next(iter(batches(1))))
    for parameter in model.parameters():
        parameter.grad.fill_(bad)
    optimizer.step()
    with caplog.at_level(logging.WARNING, logger="decayprune"):
        pruner.step()
    assert "not finite; the decay waits" in caplog.text
    assert (pruner.steps, pruner.waited) == (4, 1)
    assert all(torch.equal(value, state[k]) for k, value in pruner.lifecycle.state_dict().items())

    optimizer.zero_grad()
    model.load_state_dict(good)  # what a careful loop does: back to the last good weights
    train(model, optimizer, 20, pruner, first=4)
    assert pruner.finished
    assert pruner.waited == 1
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(e.work is None or abs(e.work) < 1e6 for e in pruner.events)


def test_only_gradients_are_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pruner = build(model, optimizer)
    train(model, optimizer, 4, pruner)
    for number, batch in enumerate(batches(18, first=4)):
        backward(model, batch)
        if number == 1:
            for weight in (model.a[1].weight, model.stem[1].weight):
                weight.grad.fill_(float("nan"))
            pruner.observe()
            for weight in (model.a[1].weight, model.stem[1].weight):
                weight.grad.nan_to_num_(0.0)  # as a careful loop clips them
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.waited == 1
    assert pruner.steps == 21
    assert caplog.text.count("the decay waits") == 1
    pruner.compact()


def test_a_stretch_of_waiting_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = build(model, optimizer)
    train(model, optimizer, 4, pruner)
    good = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.WARNING, logger="decayprune"):
        for bad in (True, True, True, False, False, True, False):
            model.load_state_dict(good)
            backward(model, next(iter(batches(1))))
            if bad:
                for parameter in model.parameters():
                    parameter.grad.fill_(float("nan"))
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    assert pruner.waited == 4
    assert caplog.text.count("the decay waits") == 2
    assert caplog.text.count("the decay goes on") == 2


def test_it_never_prints(capsys: pytest.CaptureFixture[str]) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = build(model, optimizer)
    train(model, optimizer, 22, pruner)
    pruner.compact()
    assert capsys.readouterr() == ("", "")


def test_reasons_are_told_once_and_the_widest_first() -> None:
    gates = [nn.Sequential(nn.Linear(6, 1), nn.Softmax(-1), nn.Linear(1, 6)) for _ in range(6)]
    wide = nn.Sequential(nn.Linear(6, 40), nn.Softmax(-1), nn.Linear(40, 6))
    wider = nn.Sequential(nn.Linear(6, 50), nn.Softmax(-1), nn.Linear(50, 6))
    blocks = [m for block in (*gates, wide, wider) for m in (block, nn.Softmax(-1))]
    with pytest.raises(ValueError, match="Nothing in this model can be pruned") as caught:
        pruner_for(
            nn.Sequential(*blocks),
            torch.optim.SGD(nn.Sequential(*blocks).parameters(), lr=0.1),
            inputs=torch.randn(2, 6),
        )
    told = str(caught.value)
    assert told.count("softmax over the channels") == 1
    assert "`14.0` (50 wide) and 9 more: softmax over the channels (in `14.1`)" in told
    assert told.index("softmax over") < told.index("the only output of its layer")


def test_one_device_that_holds_numbers() -> None:
    here, nowhere = torch.zeros(2), torch.zeros(2, device="meta")
    arguments.check_one_device({"a": here, "b": here})
    with pytest.raises(ValueError, match="load or initialise its weights"):
        arguments.check_one_device({"a": here, "b": nowhere})
    with accelerator.simulated():
        there = here.to(accelerator.DEVICE)
        with pytest.raises(ValueError, match=r"a on cpu, b on lazy:0"):
            arguments.check_one_device({"a": here, "b": there})
