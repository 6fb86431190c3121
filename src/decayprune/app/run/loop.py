"""A plain training loop in three small functions: train, evaluate, and the learning rate.

Everything a step draws at random follows from (seed, step), so a loop entered at step k goes on
exactly as one that came there by itself: model, optimizer and pruner are all the state there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from decayprune.app.run.batches import Batch, Batches, seed_all, to_device
from decayprune.app.run.objective import Objective, forward
from decayprune.distill import Distill

CLASSIFIER = Objective()
"""Cross-entropy of logits, judged by the accuracy."""

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


def _gradients(
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    *,
    bf16: bool,
    pruner: Pruner | None,
    distill: Distill | None,
) -> tuple[Tensor, bool]:
    """Loss of one batch, gradients clipped in place, and whether they are finite."""
    device = next(model.parameters()).device
    inputs, targets = to_device(batch[0], device), to_device(batch[1], device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        outputs = forward(model, inputs)
        if distill is None:
            loss = objective.loss(outputs, targets)
        else:
            loss = distill(outputs, targets, inputs)
    loss.backward()
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
    objective: Objective = CLASSIFIER,
    distill: Distill | None = None,
) -> Iterator[Step]:
    """Train from step ``start`` up to ``stop``, one yield per step.

    Args:
        model: Returns what the objective takes.
        optimizer: Its learning rate is set before each step.
        batches: Epoch and position follow from the step.
        start: Number of the first step; not 0 when a run is resumed.
        stop: One past the last step.
        lr: Learning rate of a step, by its number.
        seed: What the model draws (dropout) follows from this and the step.
        bf16: Forward in bfloat16 autocast.
        pruner: Observes before clipping and steps after the optimizer.
        objective: Whose loss is minimised.
        distill: Asks a teacher as well, and holds the loss.

    Yields:
        Each step after it was made. One whose gradient is not finite changes no weight.

    Raises:
        RuntimeError: The gradients stay infinite or NaN.
        TypeError: The model does not return what the loss takes.
    """
    model.train()
    bad, number = 0, start
    while number < stop:
        epoch, first = divmod(number, len(batches))
        for batch in batches.epoch(epoch, first):
            rate = lr(number)
            for group in optimizer.param_groups:
                group["lr"] = rate
            seed_all(seed, number)
            loss, finite = _gradients(
                model, batch, objective, bf16=bf16, pruner=pruner, distill=distill
            )
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
    objective: Objective = CLASSIFIER,
) -> float:
    """Mean of the metric over a split, such as the share of right answers; in eval mode.

    Args:
        model: Returns what the objective takes; its training mode is restored.
        batches: The split.
        bf16: Forward in bfloat16 autocast.
        tick: Called after each batch, for progress bars.
        objective: Whose metric is measured.

    Raises:
        ValueError: The split is empty.
        TypeError: The model does not return what the metric takes.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in batches.epoch(0):
        inputs, targets = to_device(batch[0], device), to_device(batch[1], device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = torch.as_tensor(objective.metric(forward(model, inputs), targets))
        size = _size(targets)
        total += value.double().sum() if value.dim() else value.double() * size
        count += size
        tick()
    model.train(training)
    if not count:
        raise ValueError("Expected at least one example to judge the model by; found none.")
    return float(total) / count


def _size(targets: Any) -> int:
    """Examples in a batch, by its targets: a tensor, or a nest of them."""
    if isinstance(targets, dict):
        return _size(next(iter(targets.values())))
    if isinstance(targets, tuple):
        return _size(targets[0])
    return len(targets)
