"""The surface of a host: one for all of them, silent when all is done, attached or called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.hosts import DHSPG, HESSO, GateDecorator, TorchPruningHost
from decayprune.session.host import BesideOptimizer, Host
from loops import INPUTS, OPTIMIZERS, backward, batches, moves, net, pruner_for, same, train

READ = {
    "model",
    "structures",
    "cost",
    "lifecycle",
    "steps",
    "waited",
    "events",
    "finished",
    "on_event",
}
CALLED = {"remaining", "log", "__repr__", "compact", "close"}


@pytest.mark.parametrize("kind", [dp.DecayPruner, DHSPG, HESSO, GateDecorator, TorchPruningHost])
def test_every_host_has_the_one_surface(kind: type[Host]) -> None:
    assert issubclass(kind, Host)
    # Written once: no host has a reading of its own.
    assert not (READ | CALLED) & vars(kind).keys()


class Wrapped(torch.optim.Optimizer):
    """As Accelerate's: calls itself an optimizer and has neither hooks nor state of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Holder:
    """As Lightning's: no optimizer at all, and holds one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


@pytest.mark.parametrize(
    "wrap",
    [Wrapped, Holder, lambda o: Wrapped(Wrapped(o)), lambda o: [Holder(o)]],
    ids=["subclass", "holder", "twice", "in a list"],
)
def test_wrapped_optimizers_are_unwrapped(wrap: Callable[[Any], Any]) -> None:
    runs = []
    for wrapped in (False, True):
        model = net()
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        pruner = pruner_for(model, wrap(optimizer) if wrapped else optimizer)
        train(model, optimizer, 30, pruner)
        runs.append((pruner, model))
    (plain, dense), (other, same_) = runs
    assert moves(other) == moves(plain) != []
    assert same(dense, same_)
    other.compact()


def test_a_finished_pruner_needs_no_gradients() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer)
    train(model, optimizer, 30, pruner)
    assert pruner.finished
    optimizer.zero_grad()
    pruner.observe()
    optimizer.step()
    steps = pruner.steps
    pruner.step()
    assert pruner.steps == steps + 1
    pruner.compact()


def test_before_that_it_is_an_error() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer)
    train(model, optimizer, 2, pruner)
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"pruner\.observe\(\) needs the gradients"):
        pruner.observe()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"pruner\.step\(\) needs .* order is: .*pruner\.step"):
        pruner.step()


def beside(name: str) -> tuple[nn.Module, torch.optim.Optimizer, BesideOptimizer]:
    model = net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    if name == "pruner":
        return model, optimizer, pruner_for(model, optimizer)
    if name == "gate decorator":
        from decayprune.hosts import TickTock

        ticks = TickTock(tick_steps=2, tock_steps=2, ticks=3, share=0.1)
        host: BesideOptimizer = GateDecorator(
            model, optimizer, INPUTS, budget=dp.Budget(macs=0.8), schedule=ticks, decay_steps=2
        )
        return model, optimizer, host
    import torch_pruning as tp

    own = tp.pruner.MetaPruner(
        model, INPUTS, tp.importance.GroupMagnitudeImportance(), pruning_ratio=0.3,
        ignored_layers=[model.fc], in_channel_groups={}, out_channel_groups={}, num_heads={},
    )  # fmt: skip
    model.train()
    return model, optimizer, TorchPruningHost(own, optimizer, INPUTS, decay_steps=4)


@pytest.mark.parametrize("name", ["pruner", "gate decorator", "torch-pruning"])
def test_attached_or_called_is_the_same(name: str) -> None:
    called_model, optimizer, called = beside(name)
    train(called_model, optimizer, 30, called)
    attached_model, other, attached = beside(name)
    attached.attach()
    train(attached_model, other, 30)
    assert [vars(e) for e in attached.events] == [vars(e) for e in called.events] != []
    assert same(called_model, attached_model)
    with pytest.raises(RuntimeError, match=r"steps by itself: remove the call of \w+\.step\(\)"):
        attached.step()
    attached.detach()
    for batch in batches(1, first=30):
        backward(attached_model, batch)
        other.step()
        attached.step()
        other.zero_grad()
    assert attached.compact().removed == called.compact().removed > 0


def test_a_forgotten_pruner_frees_its_model() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer)
    other = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="Another pruner already works on this model"):
        pruner_for(model, optimizer)
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    del pruner
    assert pruner_for(model, optimizer).steps == 0
    assert pruner_for(other, OPTIMIZERS["SGD"](other.parameters())).steps == 0


def test_it_tells_of_every_event_and_where_it_stands() -> None:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    told: list[dp.Event] = []
    rectify = dp.Rectify(rule="thresholds", t_rate=-1, t_len=-1e9, warm_up=0)
    pruner = pruner_for(model, optimizer, rectify=rectify, on_event=told.append)
    assert "step 0, 100.0% of the MACs left; 0 decaying, 0 pruned, 0 released" in repr(pruner)
    seen = []
    for _ in range(30):
        train(model, optimizer, 1, pruner)
        assert told == pruner.events
        seen.append(pruner.log())
        state = pruner.lifecycle
        assert seen[-1]["macs_left"] == pruner.remaining()["macs"]
        assert seen[-1]["decaying"] == sum(state.phase == 1)
        assert seen[-1]["pruned"] == sum(state.phase == 2)
        assert seen[-1]["released"] == sum(event.kind == "release" for event in told)
        assert -1 <= seen[-1]["strongest_resistance"] <= 1
        assert all(type(value) is float for value in seen[-1].values())
    assert max(row["released"] for row in seen) > 0
    assert any(row["strongest_resistance"] != 0 for row in seen)
    while not pruner.finished:
        train(model, optimizer, 1, pruner)
    assert "finished: compact() is next" in repr(pruner)
    pruner.compact()
    assert "compacted" in repr(pruner)


def test_a_listener_that_fails_leaves_a_step_that_was_made() -> None:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pruner = pruner_for(model, optimizer)

    def fails(event: dp.Event) -> None:
        raise OSError("the tracking server is gone")

    pruner.on_event = fails
    with pytest.raises(OSError, match="tracking server"):
        train(model, optimizer, 30, pruner)
    assert pruner.steps > 0
    assert pruner.events
    pruner.on_event = None
    while not pruner.finished:
        train(model, optimizer, 1, pruner)
    assert pruner.compact().removed
