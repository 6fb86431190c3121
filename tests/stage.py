"""What the code blocks of the docs find on stage: the reader's own model, data and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp

STEPS = 40


class Net(nn.Module):
    """Small enough for milliseconds, with a residual block so that widths are coupled."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.a = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.b = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


class Loader:
    """The same batches of learnable noise in every epoch."""

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            targets = torch.randint(4, (8,), generator=generator)
            noise = torch.randn(8, 3, 8, 8, generator=generator)
            yield noise + targets.view(-1, 1, 1, 1) / 2, targets


def train(model: nn.Module, optimizer: Any, pruner: Any, steps: int = STEPS) -> None:
    """The plain loop, for blocks that begin where it ends."""
    for _, (inputs, targets) in zip(range(steps), Loader(), strict=False):
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()


def stage() -> dict[str, Any]:
    """Fresh names for the first block of a page."""
    torch.manual_seed(0)
    model = Net()
    make: Callable[[], Net] = Net
    return {
        "__name__": "docs",
        "dp": dp,
        "torch": torch,
        "nn": nn,
        "F": F,
        "make_model": make,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "criterion": nn.CrossEntropyLoss(),
        "loader": Loader(),
        "batches": [inputs for inputs, _ in Loader()][:4],
        "example_inputs": torch.randn(1, 3, 8, 8),
        "total_steps": STEPS,
        "train": train,
    }
