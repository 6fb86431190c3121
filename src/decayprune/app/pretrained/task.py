"""What a task is: a pretrained network, data, and what is particular about pruning it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from decayprune.app.pretrained.loop import Batch, Data, evaluate, train
from decayprune.checkpoint.atomic import write_atomically
from decayprune.structures.example import ExampleInputs

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "decayprune"
"""Of what is made once: tokens and dense networks, in a folder of each task."""

BATCH = 32
"""Examples per step."""

DENSE_STEPS = 800
"""Of the dense fine-tuning."""


class Task(Protocol):
    """A pretrained network and what it is to learn.

    Attributes:
        cache: Folder of the dense networks.
        dense_lr: Peak rate of the dense fine-tuning, and of going on with it.
        ignored: ``ignored_layers`` of the library's pruner.
    """

    cache: Path
    dense_lr: float
    ignored: tuple[str, ...]

    def data(self) -> Data:
        """All parts."""

    def fresh(self) -> Any:
        """The network with weights drawn anew, all of them to be trained."""

    def pretrained(self) -> Any:
        """The network with its pretrained weights under a fresh head."""

    def example(self, number: int = 2) -> ExampleInputs:
        """Inputs that a pruner counts and checks on, and that latency is measured with."""

    def macs(self, model: Any) -> int:
        """Multiply-accumulates for one example."""

    def widths(self, model: Any) -> dict[str, list[int]]:
        """What stays of a network, layer by layer."""

    def torch_pruned(
        self, model: Any, budget: float, importance: str, batches: Iterable[Batch]
    ) -> nn.Module:
        """A copy that Torch-Pruning cut down to a budget of MACs, its gradients from batches."""

    def shallow(self, model: Any, budget: float) -> nn.Module:
        """The network with its last layers dropped, in place; ValueError where that is nothing."""


def dense_file(task: Task, seed: int, steps: int = DENSE_STEPS) -> Path:
    """Where the dense network of a seed is kept."""
    return task.cache / f"dense-{BATCH}x{steps}-{task.dense_lr:g}-s{seed}.safetensors"


def dense(task: Task, seed: int, data: Data, steps: int = DENSE_STEPS) -> Any:
    """The fine-tuned dense network of a seed: trained once, then read from the cache."""
    torch.manual_seed(seed)
    model = task.pretrained()
    file = dense_file(task, seed, steps)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        batches = data["train"].forever(10_000 + seed)
        train(model, batches, steps, task.dense_lr, title=f"dense, seed {seed}")
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        write_atomically({file: lambda path: save_file(weights, path)})
    model.load_state_dict(load_file(file))
    return model


def dense_accuracy(
    task: Task, seed: int, model: nn.Module, data: Data, judged_on: str, steps: int = DENSE_STEPS
) -> float:
    """Of the dense network of a seed: judged once, then read from the cache."""
    file = dense_file(task, seed, steps).with_suffix(f".{judged_on}.json")
    if not file.is_file():
        text = json.dumps(evaluate(model, data[judged_on]))
        write_atomically({file: lambda path: path.write_text(text)})
    return float(json.loads(file.read_text()))
