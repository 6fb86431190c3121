"""Learning from the dense model while the smaller one recovers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decayprune.structures.example import ExampleInputs, arguments


class Distill:
    """A loss that asks a teacher, too: ``(1 - weight) * loss + weight * T^2 * KL(teacher, model)``.

    Example:
        ```python
        criterion = Distill(copy.deepcopy(model), nn.CrossEntropyLoss())
        pruner = DecayPruner(model, ...)
        loss = criterion(model(images), labels, images)
        ```

    Args:
        teacher: A copy of the model from before the pruner was built, or a larger one. It is set to
            evaluation mode, and never trained.
        loss: Of outputs and targets; None: only the teacher is asked, and targets are not read.
        temperature: ``T``: both distributions are softened by it.
        weight: The teacher's share, from 0 to 1.

    Source: Hinton et al., arXiv 1503.02531.

    Raises:
        ValueError: A number is out of its range, or there is neither a loss nor a full weight.
    """

    def __init__(
        self,
        teacher: nn.Module,
        loss: Callable[[Any, Any], Tensor] | None,
        *,
        temperature: float = 2.0,
        weight: float = 0.5,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is above 0, found {temperature!r}.")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight is the teacher's share in [0, 1], found {weight!r}.")
        if loss is None and weight != 1:
            raise ValueError("Without a loss the teacher has all the weight: pass weight=1.")
        self.teacher, self.loss = teacher.eval().requires_grad_(False), loss
        self.temperature, self.weight = temperature, weight

    def __call__(self, outputs: Any, targets: Any, inputs: ExampleInputs) -> Tensor:
        """The loss of one batch.

        Args:
            outputs: Of the model: class scores before softmax, classes in dimension 1, or an object
                with such ``.logits``.
            targets: As the loss takes them.
            inputs: The batch that the outputs are of, as the teacher takes it: a tensor, a tuple of
                positional or a dict of keyword arguments.

        Raises:
            ValueError: Teacher and model answer in different shapes.
        """
        args, kwargs = arguments(inputs)
        with torch.no_grad():
            answer = _logits(self.teacher(*args, **kwargs))
        mine = _logits(outputs)
        if mine.shape != answer.shape:
            raise ValueError(
                f"The model answers with {tuple(mine.shape)}, the teacher with "
                f"{tuple(answer.shape)}. Pass class scores of the same batch and classes."
            )
        soft = _divergence(mine / self.temperature, answer / self.temperature)
        soft = self.weight * self.temperature**2 * soft
        return soft if self.loss is None else (1 - self.weight) * self.loss(outputs, targets) + soft


def _logits(outputs: Any) -> Tensor:
    found = getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"Expected class scores, or an output with .logits; found {type(outputs).__name__}. "
            "Wrap the model, or the teacher, so that it returns them."
        )
    return found


def _divergence(mine: Tensor, answer: Tensor) -> Tensor:
    """``KL(softmax(answer), softmax(mine))``, mean over all but classes, from float32 on."""
    mine = mine.to(torch.promote_types(mine.dtype, torch.float32)).log_softmax(1)
    answer = answer.to(mine.dtype).log_softmax(1)
    return F.kl_div(mine, answer, log_target=True, reduction="none").sum(1).mean()
