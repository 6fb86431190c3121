"""What a decaying step does to tensors is traced once, without a break, with the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import decayprune as dp
from decayprune.app.run import models
from decayprune.method import motion
from decayprune.structures import edits

BEGIN, DECAY_STEPS = 2, 20

TRACED = [
    (edits, "dot"),
    (edits, "squares"),
    (motion, "resistance"),
    (motion, "all_finite"),
    (motion, "account"),
    (motion, "shrink_"),
]
"""All that a step without a decision does to tensors, but for the copy of whether all is finite."""


class Run:
    """A run with gradients that are made up, whose structures decay.

    Args:
        name: A network of the command.
        hold: Norms are held to the schedule.
    """

    def __init__(self, name: str, hold: bool = True) -> None:
        torch.manual_seed(0)
        self.model = models.build(name, 1, 10, 8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.pruner = dp.DecayPruner(
            self.model,
            self.optimizer,
            torch.zeros(1, 1, 8, 8),
            budget=dp.Budget(structures=0.8),
            schedule=dp.Schedule(start=BEGIN, stop=3 * DECAY_STEPS, decay_steps=DECAY_STEPS),
            round_to=None,
        )
        self.decayer = self.pruner._session.decayer
        self.decayer._way = self.decayer._way._replace(hold=hold)
        self._generator = torch.Generator().manual_seed(1)
        for _ in range(BEGIN + 1):
            self.step()
        assert self.pruner.lifecycle.decaying.numel()

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=self._generator) * 0.01
        self.optimizer.step()
        self.pruner.step()

    def tensors(self) -> dict[str, Tensor]:
        return {**self.model.state_dict(), **self.pruner.lifecycle.state_dict()}


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 cannot trace a dataclass")
@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("name", ["resnet8", "vit_slim"])
def test_a_traced_step_is_the_same_and_is_traced_once(
    name: str, hold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, traced = Run(name, hold), Run(name, hold)
    counters = []
    for module, function in TRACED:
        counter = CompileCounterWithBackend("aot_eager")
        counters.append(counter)
        compiled = torch.compile(getattr(module, function), backend=counter, fullgraph=True)
        monkeypatch.setattr(module, function, compiled)
    for _ in range(4):
        traced.step()
    monkeypatch.undo()
    for _ in range(4):
        plain.step()
    assert [counter.frame_count for counter in counters] == [1] * len(TRACED)
    expected: dict[str, Any] = plain.tensors()
    torch.testing.assert_close(traced.tensors(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet8", "vit_slim"])
def test_what_a_decaying_step_reads_and_writes_in_place_stays_where_it_is(name: str) -> None:
    """A graph that was captured reads and writes the addresses that it was captured with."""
    run = Run(name)

    def places() -> list[int]:
        members = run.decayer._members()
        held = [*run.model.parameters(), members.mask, members.ages]
        held += [state["momentum_buffer"] for state in run.optimizer.state.values()]
        for pick in (members.carriers, members.shrinking):
            held += [pick.owner, *(block.owner for block in pick.blocks)]
            held += [block.index for block in pick.blocks if block.index is not None]
        return [tensor.data_ptr() for tensor in held]

    before = places()
    for _ in range(4):
        run.step()
        assert places() == before
