"""A plain training loop in three small functions: train, evaluate, and the learning rate.

Everything a step draws at random follows from (seed, step), so a loop entered at step k goes on
exactly as one that came there by itself: model, optimizer and pruner are all the state there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decayprune.app.run.batches import Batch, Batches, seed_all, to_device

CLIP = 1.0
"""Largest norm of the gradient; abrupt cuts at a high rate diverge without a limit."""

PATIENCE = 50
"""Steps in a row whose gradient may be infinite or NaN before the run is given up."""


class Pruner(Protocol):
    """What the loop calls of a pruner (:class:`decayprune.DecayPruner` is one)."""

    def observe(self) -> None:
        """Read the gradients before they are clipped."""

    def step(self) -> None:
        """Act after the optimizer's step."""


@dataclass(frozen=True)
class Step:
    """One optimizer step that was made: its number, its loss (a scalar tensor) and its rate."""

    number: int
    loss: Tensor
    lr: float


def cosine(step: int, start: int, stop: int, peak: float) -> float:
    """Learning rate that falls from ``peak`` at ``start`` to 0 at ``stop`` along half a cosine.

    >>> cosine(0, 0, 10, 0.1), round(cosine(5, 0, 10, 0.1), 6), round(cosine(10, 0, 10, 0.1), 6)
    (0.1, 0.05, 0.0)
    """
    progress = min(1.0, max(0.0, (step - start) / max(1, stop - start)))
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def _logits(model: nn.Module, inputs: object, targets: Tensor) -> Tensor:
    if isinstance(inputs, dict):
        outputs = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and len(outputs) == len(targets):
        return outputs
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    raise TypeError(
        f"The command trains classifiers: the model must return logits (batch, classes), here "
        f"({len(targets)}, classes); found {found}. For another task use decayprune.DecayPruner "
        "in your own training loop."
    )


def _gradients(
    model: nn.Module, batch: Batch, device: torch.device, bf16: bool, pruner: Pruner | None
) -> tuple[Tensor, bool]:
    """Loss of one batch, gradients clipped in place, and whether they are finite."""
    inputs, targets = to_device(batch[0], device), to_device(batch[1], device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(_logits(model, inputs, targets).float(), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    if pruner is not None:
        pruner.observe()
    norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    return loss.detach(), bool(norm.isfinite())


def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    start: int,
    stop: int,
    lr: Callable[[int], float],
    seed: int = 0,
    bf16: bool = False,
    pruner: Pruner | None = None,
) -> Iterator[Step]:
    """Train from step ``start`` up to ``stop``, one yield per step.

    Args:
        model: Returns logits ``(B, classes)``.
        optimizer: Its learning rate is set before each step.
        batches: Epoch and position follow from the step.
        start: Number of the first step; not 0 when a run is resumed.
        stop: One past the last step.
        lr: Learning rate of a step, by its number.
        seed: What the model draws (dropout) follows from this and the step.
        bf16: Forward in bfloat16 autocast.
        pruner: Observes before clipping and steps after the optimizer.

    Yields:
        Each step after it was made. One whose gradient is not finite changes no weight.

    Raises:
        RuntimeError: The gradients stay infinite or NaN.
        TypeError: The model does not return logits.
    """
    device = next(model.parameters()).device
    model.train()
    bad, number = 0, start
    while number < stop:
        epoch, first = divmod(number, len(batches))
        for batch in batches.epoch(epoch, first):
            rate = lr(number)
            for group in optimizer.param_groups:
                group["lr"] = rate
            seed_all(seed, number)
            loss, finite = _gradients(model, batch, device, bf16, pruner)
            bad = 0 if finite else bad + 1
            if bad > PATIENCE:
                raise RuntimeError(
                    f"The gradients were infinite or NaN in {bad} steps in a row (step {number}). "
                    "Lower the learning rate (--lr) or check the data."
                )
            if finite:
                optimizer.step()
                if pruner is not None:
                    pruner.step()
            optimizer.zero_grad()
            yield Step(number, loss, rate)
            number += 1
            if number == stop:
                return


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    bf16: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> float:
    """Share of a split that the model gets right, 0..1; its training mode is restored.

    Args:
        model: Returns logits ``(B, classes)``.
        batches: The split.
        bf16: Forward in bfloat16 autocast.
        tick: Called after each batch, for progress bars.

    Raises:
        ValueError: The split is empty.
        TypeError: The model does not return logits.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    right, count = torch.zeros((), dtype=torch.int64, device=device), 0
    for batch in batches.epoch(0):
        inputs, targets = to_device(batch[0], device), to_device(batch[1], device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = _logits(model, inputs, targets)
        right += (logits.argmax(1) == targets).sum()
        count += len(targets)
        tick()
    model.train(training)
    if not count:
        raise ValueError("Expected at least one example to judge the model by; found none.")
    return int(right) / count
