"""Are the outputs the same? How far they may differ, what could be compared, in what words.

Only what was finite before can be compared, and it has to be finite after. Where a model sorts or
suppresses, the second run makes the choices of the first one
(:mod:`decayprune.surgery.order`), for a rounding error may swap two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from decayprune.structures.example import ExampleInputs, outputs, outputs_and_draws
from decayprune.surgery.order import Order
from decayprune.surgery.rounding import measured

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative; half precisions below
_HALF_TOLERANCE = 2e-2


@dataclass(frozen=True, eq=False)
class Remembered:
    """What a model returned.

    Attributes:
        values: Every floating-point tensor of it.
        training: Whether it ran in training mode.
        exact: Whether a second run gives the same numbers; else only whether it runs is compared.
        order: The choices of order that it made.
        may_draw: Where a later run draws random numbers, only whether it runs is compared.
    """

    values: list[Tensor]
    training: bool = False
    exact: bool = True
    order: Order = field(default_factory=Order)
    may_draw: bool = False

    @property
    def finite(self) -> int:
        """How many numbers can be compared."""
        return sum(int(value.isfinite().sum()) for value in self.values)


class Difference(NamedTuple):
    """How far outputs are apart.

    Attributes:
        error: Largest absolute difference.
        relative: Largest difference relative to the largest value of its output.
        compared: Numbers that were finite before, and therefore compared.
        numbers: Numbers there are.
    """

    error: float
    relative: float
    compared: int
    numbers: int


@dataclass(frozen=True)
class Comparison:
    """What became of a model's outputs.

    Attributes:
        error: Largest absolute difference.
        relative: The same, relative to the largest value.
        limit: Largest relative difference that is accepted.
        crash: What ``forward()`` raised, in one line; empty if it ran.
        compared: Numbers compared.
        numbers: Numbers in the outputs; those that were not finite before cannot be compared.
        ordered: Choices of order (sorting, top-k, suppression) that were kept as before.
        training: Whether the model ran in training mode.
    """

    error: float
    relative: float
    limit: float
    crash: str = ""
    compared: int = 0
    numbers: int = 0
    ordered: int = 0
    training: bool = False

    @property
    def same(self) -> bool:
        """Whether the model runs, and its outputs differ by rounding at most."""
        return not self.crash and self.relative <= self.limit

    def __str__(self) -> str:
        where = " in training mode" if self.training else ""
        if self.crash:
            return f"forward() fails{where}: {self.crash}"
        return f"outputs{where} changed by {self.relative:.1e} (relative)"


def remember(model: nn.Module, example_inputs: ExampleInputs) -> Remembered:
    """Run a model before a cut.

    Args:
        model: Run in evaluation mode.
        example_inputs: What to run it on.
    """
    order = Order()
    with order.noted():
        return Remembered(outputs(model, example_inputs), order=order)


def remember_training(model: nn.Module, example_inputs: ExampleInputs) -> Remembered | None:
    """Run a model before a cut in training mode, where branches of their own may be waiting.

    Args:
        model: One that draws random numbers cannot be compared number by number.
        example_inputs: What to run it on.

    Returns:
        None if it does not run on these inputs in training mode (a detector without targets).
    """
    order = Order()
    try:
        with order.noted():
            values, drew = outputs_and_draws(model, example_inputs, training=True)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # its forward() may want anything
        return None
    return Remembered(values, training=True, exact=not drew, order=order)


def compare(
    model: nn.Module,
    example_inputs: ExampleInputs,
    before: Remembered,
    tolerance: float | None = None,
) -> Comparison:
    """Run a model that was cut, and compare its outputs with those it had.

    Args:
        model: Run in the mode it was remembered in.
        example_inputs: What to run it on.
        before: What it returned before the cut.
        tolerance: Largest relative difference; None for what rounding explains, which is measured
            on the model where the difference is larger than usual.

    Raises:
        torch.OutOfMemoryError: There is no room to run it, which says nothing about the cut.
    """
    limit = tolerance_for(before.values) if tolerance is None else tolerance
    training = before.training
    try:
        with before.order.kept():
            after, drew = outputs_and_draws(model, example_inputs, training=training)
        if not before.exact or (drew and before.may_draw):
            return Comparison(0.0, 0.0, limit, training=training)
        found = difference(before.values, after)
    except torch.OutOfMemoryError:
        raise
    except Exception as raised:  # forward() of a cut model may fail in any way
        return Comparison(0.0, 0.0, limit, first_line(raised), training=training)
    if tolerance is None and limit < found.relative < 1:
        limit = measured(model, example_inputs, limit, training=training)
    return Comparison(
        found.error,
        found.relative,
        limit,
        compared=found.compared,
        numbers=found.numbers,
        ordered=before.order.followed,
        training=training,
    )


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> Difference:
    """How far two lists of outputs are apart, where the first is finite.

    Raises:
        ValueError: The shapes differ.
    """
    error, relative, compared, numbers = 0.0, 0.0, 0, 0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            raise ValueError(
                f"an output changed its shape from {tuple(a.shape)} to {tuple(b.shape)}"
            )
        finite = a.isfinite()
        numbers += a.numel()
        compared += int(finite.sum())
        if not bool(finite.any()):
            continue
        a, b = a[finite].double(), b[finite].double()
        distance = float((a - b).abs().nan_to_num(nan=float("inf")).max())
        largest = float(a.abs().max())
        error = max(error, distance)
        relative = max(relative, distance / largest if largest else distance)
    return Difference(error, relative, compared, numbers)


def tolerance_for(values: Sequence[Tensor]) -> float:
    """Largest relative difference that rounding alone explains in these dtypes."""
    return max((_TOLERANCE.get(v.dtype, _HALF_TOLERANCE) for v in values), default=_HALF_TOLERANCE)


def nothing_to_compare(before: Remembered) -> str:
    """Why a cut could not be proven on these outputs; empty if it can.

    Args:
        before: What the model returned.
    """
    if before.finite:
        return ""
    shapes = ", ".join(str(tuple(value.shape)) for value in before.values) or "no tensor"
    return (
        "No cut can be proven on these example inputs: the outputs of the model are to be compared "
        f"before and after it, and hold no finite number (found: {shapes}). Pass example inputs on "
        "which the model returns numbers: other values, fewer masked places, for a detector an "
        "image on which it finds something, or a model that returns its raw heads."
    )


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def proves_little(before: Remembered) -> str:
    """Why equal outputs would say little about a cut; empty if they say something.

    Args:
        before: What the model returned.
    """
    finite = [value[value.isfinite()] for value in before.values]
    many = [value for value in finite if value.numel() > 1]
    if not many or any(bool((value != value[0]).any()) for value in many):
        return ""
    return (
        f"The outputs of the model on the example inputs are constant ({float(many[0][0]):g} "
        "everywhere), so that a cut could hardly change them, and their comparison proves little. "
        "Look whether the model still works (weights that are not finite or all zero, a last layer "
        "that was never trained), or pass example inputs on which its outputs differ."
    )
