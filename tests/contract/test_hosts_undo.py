"""What every host promises if a cut is interrupted: nothing was cut, and the run goes on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.contract.hosts import HOSTS, STEPS, Setup, batch, network
from torch import Tensor, nn

import decayprune as dp
from decayprune.method.lifecycle import PRUNED
from interrupts import everything, interrupt, lines_of

ROOMS = (  # what changes something; the rest of the surgery reads
    "surgery/compact.py",
    "surgery/copies.py",
    "surgery/cut.py",
    "surgery/undo.py",
    "surgery/verified.py",
    "structures/exact/swap.py",
    "hosts/depgraph/removal.py",
    "hosts/depgraph/rehearsal.py",
    "hosts/gate_decorator/gates.py",
)


def decay_pruner(model: nn.Module, decay_steps: int, rectify: dp.Rectify | None) -> Setup:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = dp.Schedule(start=2, stop=12, rounds=2, decay_steps=decay_steps)
    budget = dp.Budget(macs=0.6)
    pruner = dp.DecayPruner(
        model, optimizer, batch(0)[0], budget=budget, schedule=schedule, rectify=rectify
    )
    return Setup(model, optimizer, pruner)


BUILDERS: dict[str, Any] = {"decay-pruner": decay_pruner, **HOSTS}
every_one = pytest.mark.parametrize("name", BUILDERS)


def finished(name: str) -> Setup:
    setup: Setup = BUILDERS[name](network(), 1, None)
    for seed in range(STEPS):
        if setup.host.finished:
            break
        train(setup, seed)
    loss(setup.model, 999).backward()  # gradients are put back, too
    return setup


def loss(model: nn.Module, seed: int) -> Tensor:
    x, y = batch(seed)
    return F.cross_entropy(model(x), y)


def train(setup: Setup, seed: int) -> None:
    setup.optimizer.zero_grad()
    loss(setup.model, seed).backward()
    setup.optimizer.step()
    setup.step()


def as_saved(value: Any) -> Any:
    """A state dict as plain values, which == compares."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: as_saved(item) for key, item in value.items()}
    return [as_saved(item) for item in value] if isinstance(value, (list, tuple)) else value


class Interrupted:
    """A run that has finished and is about to be cut, with a moving average of its model."""

    def __init__(self, name: str) -> None:
        self.setup = finished(name)
        self.average = copy.deepcopy(self.setup.model)
        self.structures = self.setup.host.structures
        self.before = self.now()

    def now(self) -> tuple[Any, Any]:
        setup = self.setup
        found = everything(setup.model, setup.optimizer, self.average)
        return found, as_saved(setup.host.state_dict())

    def compact(self) -> None:
        self.setup.host.compact(copies=[self.average])

    @property
    def cut_and_known(self) -> bool:
        return self.setup.host.structures is not self.structures

    def check_unchanged(self, where: object) -> None:
        assert self.now() == self.before, where


def check_it_goes_on(setup: Setup) -> None:
    x = batch(5000)[0]
    with torch.no_grad():
        expected = setup.model.eval()(x)
        pruned = int((setup.lifecycle.phase == PRUNED).sum())
        assert setup.host.compact().removed == pruned > 0
        torch.testing.assert_close(setup.model(x), expected, rtol=1e-4, atol=1e-5)
    setup.model.train()
    train(setup, 6000)


@every_one
@pytest.mark.parametrize("forward", [1, 2, 3, 4])
def test_an_interrupt_in_any_forward(name: str, forward: int) -> None:
    run = Interrupted(name)
    calls = []

    def strike(*_: Any) -> None:
        calls.append(1)
        if len(calls) == forward:
            raise KeyboardInterrupt

    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: strike() if isinstance(module, type(run.setup.model)) else None
    )
    try:
        with pytest.raises(KeyboardInterrupt):
            run.compact()
    finally:
        handle.remove()
    run.check_unchanged(forward)
    check_it_goes_on(run.setup)


@every_one
def test_an_interrupt_at_any_line(name: str) -> None:
    rehearsed = Interrupted(name)
    lines = lines_of(rehearsed.compact, ROOMS)
    run = Interrupted(name)
    for line in lines:
        interrupt(run.compact, ROOMS, line)
        if run.cut_and_known:
            assert name == "depgraph"  # which writes its report afterwards
            check_it_goes_on(run.setup)
            run = Interrupted(name)
        else:
            run.check_unchanged(line)
    check_it_goes_on(run.setup)
