"""The adapter to Accelerate, against the real framework."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
import two_processes
from stage import Loader, Net

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
adapter = pytest.importorskip("decayprune.integrations.accelerate", reason="no accelerate")

pytestmark = [
    # Of the framework itself, with torch as new as it gets.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

SCHEDULE = dp.Schedule(start=2, stop=6, rounds=2, decay_steps=4)
INPUTS = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Run:
    """A user's script: its parts in any order, and its loop."""

    def __init__(self, order: str = "pruner last", seed: int = 0, **options: Any) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        torch.manual_seed(seed)
        self.bare = Net()
        optimizer = torch.optim.SGD(self.bare.parameters(), lr=0.05, momentum=0.9)
        parts: tuple[Any, ...] = (self.bare, optimizer)
        if order == "pruner first":
            self.pruner = self.prune(self.bare, optimizer)
        if order == "optimizer first":
            parts = self.accelerator.prepare(optimizer, self.bare)[::-1]
        else:
            parts = self.accelerator.prepare(*parts)
        self.model, self.optimizer = parts
        if order != "pruner first":
            self.pruner = self.prune(self.accelerator.unwrap_model(self.model), self.optimizer)
        adapter.register_for_checkpointing(self.accelerator, self.pruner)

    def prune(self, model: nn.Module, optimizer: Any) -> dp.DecayPruner:
        return dp.DecayPruner(
            model, optimizer, INPUTS, budget=dp.Budget(macs=0.5), schedule=SCHEDULE, rectify=None
        )

    def train(self, begin: int, end: int) -> None:
        for inputs, targets in itertools.islice(Loader(), begin, end):
            with self.accelerator.accumulate(self.model):
                loss = nn.functional.cross_entropy(self.model(inputs), targets)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.pruner.step()
                self.optimizer.zero_grad()
            if self.pruner.finished:
                self.pruner.compact()


@pytest.mark.parametrize("order", ["pruner last", "pruner first", "optimizer first"])
@pytest.mark.parametrize(
    "options",
    [{}, {"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 2}],
    ids=["plain", "bf16", "accumulation"],
)
def test_any_order_of_preparing(order: str, options: dict[str, Any]) -> None:
    run = Run(order, **options)
    run.train(0, 30)
    assert run.pruner.report is not None
    assert run.pruner.report.macs_after <= 0.5 * run.pruner.report.macs_before
    assert run.pruner.steps == 7  # the last round is at 4, and its decay lasts 4 steps


@pytest.mark.parametrize("at", [5, 12], ids=["before the cut", "after the cut"])
def test_resuming_is_going_on(at: int, tmp_path: Path) -> None:
    whole = Run()
    whole.train(0, at)
    whole.accelerator.save_state(str(tmp_path))
    whole.train(at, 20)
    again = Run(seed=5)
    again.accelerator.load_state(str(tmp_path))
    assert (again.pruner.report is not None) == (at == 12)
    again.train(at, 20)
    assert str(again.pruner.report) == str(whole.pruner.report)
    ours, theirs = again.bare.state_dict(), whole.bare.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_forged_structure_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    run = Run()
    run.train(0, 12)
    run.accelerator.save_state(str(tmp_path))
    path = tmp_path / "decayprune_structure.json"
    said = json.loads(path.read_text())
    said["tensors"]["head.bias"]["shape"] = [10**6]
    again = Run(seed=5)
    before = dp.structure(again.bare)
    for text, match in ((json.dumps(said), r"head\.bias is \[1000000\]"), ("{", "not valid JSON")):
        path.write_text(text)
        with pytest.raises(dp.CheckpointError, match=match):
            again.accelerator.load_state(str(tmp_path))
        assert dp.structure(again.bare) == before


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Wrapped, unwrapped for the cut, and wrapped again."""
    said = two_processes.run("accelerate_ddp.py", tmp_path)
    assert said[0]["wrapped"] == "DistributedDataParallel"
    assert said[0]["left"] == said[0]["params_after"] < said[0]["dense"]
    assert said[0] == said[1]
