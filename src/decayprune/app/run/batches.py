"""Batches in an order that depends on (seed, epoch, position) and on nothing else.

A run that was killed goes on in the middle of an epoch with exactly the batches it would have seen.
Small data sets live in memory as one uint8 tensor; shuffling, flips, shifts and normalisation work
on whole batches, so no Python runs per image. Loaders of the user are wrapped, with the random
number generators set from (seed, epoch) before each pass over them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decayprune.app.run.blame import blamed

Batch = tuple[Any, Any]
"""Inputs of the model, targets of the loss."""


class Batches(Protocol):
    """A source of batches that can be entered anywhere."""

    def __len__(self) -> int:
        """Batches in one epoch."""

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from position ``first`` on."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        flip: Mirror half of the images left to right.
        shift: Pad by this many pixels and crop at a random place; 0 for none.
    """

    flip: bool = False
    shift: int = 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Flip and shift a batch ``(B, C, H, W)``, every image by its own draw."""
        count, _, height, width = images.shape
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.shift:
            padded = F.pad(images, (self.shift,) * 4)
            # All crops as one strided view, of which the index below copies one per image.
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            down, right = torch.randint(2 * self.shift + 1, (2, count), generator=generator)
            images = windows[torch.arange(count), :, down, right]
        return images


@dataclass(frozen=True, eq=False)
class MemoryBatches:
    """Batches from images held in memory.

    Attributes:
        images: uint8, shape ``(n, C, H, W)``.
        targets: Class of each image, int64, shape ``(n,)``.
        mean: Per channel, of pixels scaled to 0..1; subtracted.
        std: Per channel; divided by.
        batch_size: Images per batch. When shuffled, the incomplete last batch of an epoch is left
            out (BatchNorm needs batches of one size); else it is kept.
        shuffle: A new order in every epoch.
        seed: What order and augmentation follow from, with the epoch and the position.
        augment: Applied to each batch when given.
    """

    images: Tensor
    targets: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.targets):
            raise ValueError(
                f"The batch size must lie between 1 and the {len(self.targets)} images there are; "
                f"found {self.batch_size}."
            )

    def __len__(self) -> int:
        """Batches in one epoch."""
        full, rest = divmod(len(self.targets), self.batch_size)
        return full if self.shuffle else full + (rest > 0)

    def _generator(self, *position: int) -> torch.Generator:
        # SeedSequence mixes its words well; neighbouring seeds give unrelated streams.
        state = np.random.SeedSequence((self.seed, *position)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) >> 1)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` from position ``first`` on, normalised float32."""
        order = None
        if self.shuffle:
            order = torch.randperm(len(self.targets), generator=self._generator(number))
        mean = torch.tensor(self.mean)[:, None, None] * 255
        scale = 1 / (torch.tensor(self.std)[:, None, None] * 255)
        for position in range(first, len(self)):
            span = slice(position * self.batch_size, (position + 1) * self.batch_size)
            chosen = span if order is None else order[span]
            images = self.images[chosen]
            if self.augment is not None:
                images = self.augment(images, self._generator(number, position))
            yield (images.float() - mean) * scale, self.targets[chosen]


def seed_all(*words: int) -> None:
    """Set torch's, numpy's and Python's generators to what follows from some whole numbers."""
    state = int(np.random.SeedSequence(words).generate_state(1)[0])
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)


@dataclass(frozen=True, eq=False)
class LoaderBatches:
    """Batches from any iterable of (inputs, targets) that can be iterated over again and again.

    The generators of torch, numpy and Python are set from (seed, epoch, position) before each
    batch is fetched, so that a shuffling or augmenting ``DataLoader`` repeats itself; batches
    before the first one asked for are fetched and dropped.

    Attributes:
        loader: Iterated over once an epoch.
        seed: What its order follows from, with the epoch.
        given: The word of ``--data`` that brought it, for errors; empty for our own.
    """

    loader: Iterable[Batch]
    seed: int = 0
    given: str = ""

    def __len__(self) -> int:
        """Batches in one epoch."""
        if not isinstance(self.loader, Sized):
            raise TypeError(
                "A loader must have a length (number of batches), as torch's DataLoader over a "
                f"sized data set has; found {type(self.loader).__name__} without __len__."
            )
        return len(self.loader)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` from position ``first`` on."""
        seed_all(self.seed, number)
        own = getattr(self.loader, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(torch.initial_seed())
        with blamed("--data", self.given):
            iterator = iter(self.loader)
        for position in range(len(self)):
            seed_all(self.seed, number, position)
            with blamed("--data", self.given):
                batch = next(iterator, None)
            if batch is None:
                raise ValueError(
                    f"A loader said that it holds {len(self)} batches and gave {position}. It "
                    "must be iterable again and again, and as long as its len()."
                )
            if position >= first:
                yield _pair(batch)


def _pair(batch: object) -> Batch:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise TypeError(
        "A loader must yield pairs (inputs, targets); found "
        f"{type(batch).__name__}{f' of {len(batch)}' if isinstance(batch, Sized) else ''}."
    )


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)
    return value
