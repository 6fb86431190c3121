"""A small residual network and the plain training loop, shared by the tests of the pruner."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp

INPUTS = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """Two coupled widths: the stream, and the inside of a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.a = nn.Sequential(nn.Conv2d(12, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10))
        self.b = nn.Sequential(nn.Conv2d(10, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.c = nn.Conv2d(12, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


def net(seed: int = 1) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
}


def batches(steps: int, first: int = 0, size: int = 8) -> Iterable[tuple[Tensor, Tensor]]:
    """The same batch for the same step number, always."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        targets = torch.randint(4, (size,), generator=generator)
        images = torch.randn(size, 3, 8, 8, generator=generator)
        yield images + targets.view(-1, 1, 1, 1) / 2, targets


def backward(model: nn.Module, batch: tuple[Tensor, Tensor], scale: float = 1.0) -> None:
    images, targets = batch
    dtype = next(model.parameters()).dtype
    (F.cross_entropy(model(images.to(dtype)), targets) * scale).backward()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    pruner: dp.DecayPruner | None = None,
    first: int = 0,
) -> None:
    """The loop of the README."""
    for batch in batches(steps, first):
        backward(model, batch)
        optimizer.step()
        if pruner is not None:
            pruner.step()
        optimizer.zero_grad()


def pruner_for(
    model: nn.Module, optimizer: Any, *, inputs: Tensor = INPUTS, **options: Any
) -> dp.DecayPruner:
    """A pruner that takes half of the MACs in three rounds."""
    defaults: dict[str, Any] = {
        "budget": dp.Budget(macs=0.5),
        "schedule": dp.Schedule(start=2, stop=14, rounds=3, decay_steps=5),
        "rectify": dp.Rectify(extra=0.5),
        "round_to": None,  # the same on every machine
    }
    return dp.DecayPruner(model, optimizer, inputs, **(defaults | options))


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same bits."""
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


def moves(pruner: dp.DecayPruner) -> list[tuple[int, str, int]]:
    return [(event.step, event.kind, event.structure) for event in pruner.events]
