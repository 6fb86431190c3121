"""Fashion-MNIST as photographs are given to a network: 64 pixels, three channels.

5,000 of the 60,000 training images are held out for choices, the rest trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from decayprune.app.pretrained.loop import Batch
from decayprune.app.pretrained.task import BATCH, CACHE
from decayprune.app.run import data
from decayprune.app.run.batches import Batches, MemoryBatches

FOLDER = CACHE / "fashion"
SIZE = 64


@dataclass(frozen=True)
class Images:
    """One part of the data.

    Attributes:
        images: Grey, uint8, shape ``(N, 1, 28, 28)``.
        labels: Classes, ``(N,)``.
    """

    images: Tensor
    labels: Tensor

    def batch(self, which: Tensor) -> Batch:
        """Some images as the network was trained to read them, and their classes."""
        scaled = (self.images[which].float() - 127) / 128
        large = F.interpolate(scaled, (SIZE, SIZE), mode="bilinear", align_corners=False)
        images = large.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return {"inputs": images}, self.labels[which]

    def forever(self, seed: int, size: int = BATCH) -> Iterator[Batch]:
        """Batches to train on, epoch after epoch, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.labels), generator=generator)
            for which in torch.split(order[: len(order) // size * size], size):
                yield self.batch(which)

    def once(self, limit: int | None = None) -> Iterator[Batch]:
        """All images, or always the same ``limit`` of them, each once."""
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(self.labels), generator=generator)[:limit]
        for which in torch.split(order, 250):
            yield self.batch(which)


def load() -> dict[str, Images]:
    """The parts ``train``, ``held_out`` and ``test``."""
    found = data.load("fashion-mnist", FOLDER, BATCH, 0)
    parts = {"train": found.train, "held_out": found.validation, "test": found.test}
    return {name: _read(part) for name, part in parts.items()}


def _read(part: Batches | None) -> Images:
    assert isinstance(part, MemoryBatches), "Fashion-MNIST lies in memory, in three parts"
    return Images(part.images, part.targets.long())
