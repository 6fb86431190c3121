"""A pretrained task as small as it can be: two layers, and points on either side of a plane."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.app.pretrained.loop import Batch, Data

WIDTH = 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(inputs)))


@dataclass
class Points:
    """Points and their side.

    Attributes:
        seed: Of the points.
        drawn: How often batches to train on were asked for.
    """

    seed: int
    drawn: list[int] = field(default_factory=list)

    def forever(self, seed: int) -> Iterator[Batch]:
        self.drawn.append(seed)
        generator = torch.Generator().manual_seed(100 * self.seed + seed)
        while True:
            yield self.batch(torch.randn(16, 4, generator=generator))

    def once(self, limit: int | None = None) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        yield self.batch(torch.randn(64, 4, generator=generator)[:limit])

    def batch(self, points: Tensor) -> Batch:
        return {"inputs": points}, (points.sum(1) > 0).long()


@dataclass
class Toy:
    """The task; see :class:`decayprune.app.pretrained.task.Task`."""

    cache: Path
    dense_lr: float = 0.01
    ignored: tuple[str, ...] = ()

    def data(self) -> Data:
        return {name: Points(i) for i, name in enumerate(("train", "held_out", "test"))}

    def fresh(self) -> Net:
        return Net()

    def pretrained(self) -> Net:
        return Net()

    def example(self, number: int = 2) -> Tensor:
        return torch.randn(number, 4, generator=torch.Generator().manual_seed(0))

    def macs(self, model: Any) -> int:
        return int(model.up.weight.numel() + model.down.weight.numel())

    def widths(self, model: Any) -> dict[str, list[int]]:
        return {"hidden": [model.up.out_features]}

    def torch_pruned(
        self, model: Any, budget: float, importance: str, batches: Iterable[Batch]
    ) -> nn.Module:
        raise NotImplementedError("the toy is not given to Torch-Pruning")

    def shallow(self, model: Any, budget: float) -> nn.Module:
        raise ValueError("the toy has no layers to drop")
