"""The training loop that every arm shares: AdamW, a short warm-up, a cosine to zero, float32."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import decayprune as dp
from decayprune.one_shot import stand_still

Inputs = dict[str, Tensor]
Batch = tuple[Inputs, Tensor]
"""What a model reads, by the names of its arguments, and the classes."""


class Part(Protocol):
    """One part of the data: ``"train"``, ``"held_out"`` for choices, or ``"test"``."""

    def forever(self, seed: int) -> Iterator[Batch]:
        """Batches to train on, epoch after epoch, the same for the same seed."""

    def once(self, limit: int | None = None) -> Iterator[Batch]:
        """All examples, or always the same ``limit`` of them, each once."""


Data = Mapping[str, Part]

WEIGHT_DECAY = 0.01
CLIP = 1.0
WARM_UP = 0.05  # share of the steps


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def adamw(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """What every arm is trained with that brings no optimizer of its own."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)


def train(
    model: nn.Module,
    batches: Iterator[Batch],
    steps: int,
    lr: float,
    *,
    title: str,
    optimizer_on: Callable[[list[nn.Parameter], float], torch.optim.Optimizer] | None = None,
    pruner_on: Callable[[torch.optim.Optimizer], Any] | None = None,
    teacher: nn.Module | None = None,
    glance: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train; prune on the way, and cut as soon as the pruner has finished.

    Args:
        model: Trained in place.
        batches: To train on.
        steps: Optimizer steps. Of none is made what a cut needs: one that moves nothing.
        lr: Peak learning rate.
        title: Beside the progress bar.
        optimizer_on: Makes the optimizer of what is trained, with that rate; AdamW if left out.
        pruner_on: Builds a pruner on the optimizer: ``observe, step, finished, compact``.
        teacher: Dense model to distil from.
        glance: Called with the number of steps taken, after each.

    Returns:
        The pruner, the report of its cut, and seconds of this process.

    Raises:
        RuntimeError: The pruner has not finished within the steps.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = (optimizer_on or adamw)(trained, lr)
    pruner = None if pruner_on is None else pruner_on(optimizer)
    taught = None if teacher is None else dp.Distill(teacher, F.cross_entropy)
    report, begun = None, time.process_time()
    model.train()
    if pruner is not None and not steps:
        stand_still(optimizer, pruner.step)
        report = pruner.compact()
    for step in track(range(steps), title):
        set_rate(optimizer, learning_rate(step, steps, lr))
        inputs, labels = next(batches)
        logits = model(**inputs)
        loss = F.cross_entropy(logits, labels) if taught is None else taught(logits, labels, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        active = pruner if report is None else None
        if active is not None:
            active.observe()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        if active is not None:
            active.step()
            if active.finished:
                report = active.compact()
        optimizer.zero_grad()
        glance(step + 1)
    if pruner is not None and report is None:
        raise RuntimeError(f"{title}: the pruner has not finished within {steps} steps.")
    return {"pruner": pruner, "report": report, "seconds": time.process_time() - begun}


@torch.inference_mode()
def evaluate(model: nn.Module, part: Part, limit: int | None = None) -> float:
    """Share of a part's examples (always the same ``limit`` of them) whose class is found."""
    training = model.training
    model.eval()
    right = total = 0
    for inputs, labels in part.once(limit):
        right += int((model(**inputs).argmax(1) == labels).sum())
        total += len(labels)
    model.train(training)
    return right / total


def normalised_anew(model: nn.Module, batches: Iterable[Batch]) -> bool:
    """Take the running statistics of batch normalisation from some batches alone.

    Where they forget slowly they lag behind weights that have changed much.

    Args:
        model: Changed in place.
        batches: To train on; labels are not read.

    Returns:
        Whether there are any.
    """
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        return False
    named = _OfOneDictionary(model).train(model.training)  # left as it was
    update_bn((inputs for inputs, _ in batches), named)
    return True


class _OfOneDictionary(nn.Module):
    """A model that takes its named inputs as one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Any:
        return self.model(**inputs)
