"""What a model is trained for and judged by: loss and metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from decayprune.app.run import own
from decayprune.app.run.blame import blamed

Function = Callable[[Any, Any], Any]


def logits(outputs: Any, targets: Any) -> Tensor:
    """Outputs of a classifier; those of Hugging Face's models hold them as ``.logits``.

    Raises:
        TypeError: They are no logits ``(batch, classes)``.
    """
    found = getattr(outputs, "logits", outputs)
    if isinstance(found, Tensor) and found.dim() == 2 and len(found) == len(targets):
        return found
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise TypeError(
        f"Without --loss the command trains classifiers: the model must return logits (batch, "
        f"classes), here ({len(targets)}, classes); found {shape}. For another task give --loss "
        "pkg.mod:function, called with (outputs, targets), and --metric."
    )


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits.

    Raises:
        TypeError: The outputs are no logits.
        ValueError: A target is no class of theirs.
    """
    found = logits(outputs, targets)
    try:
        return F.cross_entropy(found.float(), targets)
    except IndexError as error:
        raise ValueError(
            f"The model tells {found.shape[1]} classes apart, and the data has class "
            f"{int(targets.max())} (counted from 0). Give --model as many as the data has, as in "
            "NAME?num_classes=10."
        ) from error


def accuracy(outputs: Any, targets: Tensor) -> Tensor:
    """Whether each example is classified rightly, bool, ``(B,)``."""
    return logits(outputs, targets).argmax(1) == targets


@dataclass(frozen=True)
class Objective:
    """What training minimises, and what the model is judged by.

    Attributes:
        loss: Called with (outputs, targets); a scalar tensor.
        metric: Likewise; one number for the batch (its mean), or one for each example.
        name: Of the metric.
    """

    loss: Function = cross_entropy
    metric: Function = accuracy
    name: str = "accuracy"


def objective(loss: str | None, metric: str | None) -> Objective:
    """The functions that the options name.

    Args:
        loss: ``pkg.mod:function``; None: cross-entropy.
        metric: ``accuracy``, ``loss`` or ``pkg.mod:function``; None: accuracy for cross-entropy,
            and a loss of the user's itself.

    Raises:
        ValueError: A function does not exist.
    """
    wanted = "a function of (outputs, targets)"
    trained = cross_entropy if loss is None else _checked(loss)
    name = metric or ("accuracy" if loss is None else "loss")
    if name == "accuracy":
        return Objective(trained)
    if name == "loss":
        return Objective(trained, trained, "loss")
    found = own.function(name, "--metric", f"{wanted}, accuracy or loss")
    return Objective(trained, partial(_blaming, found, "--metric", name), _short(name))


def _short(spec: str) -> str:
    return spec.partition("?")[0].partition(":")[2]


def _blaming(found: Function, option: str, spec: str, outputs: Any, targets: Any) -> Any:
    with blamed(option, spec):
        return found(outputs, targets)


def _checked(spec: str) -> Function:
    """A loss of the user's that has to be a scalar to go back from."""
    found = own.function(spec, "--loss", "a function of (outputs, targets)")

    def loss(outputs: Any, targets: Any) -> Tensor:
        value = _blaming(found, "--loss", spec, outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"--loss {spec} should return a scalar tensor; it returned {shape}.")
        return value

    return loss


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call a model on a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)
