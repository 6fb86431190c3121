"""Are the outputs the same? How far they may differ, and in what words they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decayprune.structures.example import ExampleInputs, outputs

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative; half precisions below
_HALF_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Comparison:
    """What became of a model's outputs.

    Attributes:
        error: Largest absolute difference.
        relative: The same, relative to the largest value.
        limit: Largest relative difference that is accepted.
        crash: What ``forward()`` raised, in one line; empty if it ran.
    """

    error: float
    relative: float
    limit: float
    crash: str = ""

    @property
    def same(self) -> bool:
        """Whether the model runs, and its outputs differ by rounding at most."""
        return not self.crash and self.relative <= self.limit

    def __str__(self) -> str:
        if self.crash:
            return f"forward() fails: {self.crash}"
        return f"outputs changed by {self.relative:.1e} (relative)"


def compare(
    model: nn.Module,
    example_inputs: ExampleInputs,
    before: Sequence[Tensor],
    tolerance: float | None = None,
) -> Comparison:
    """Run a model that was cut, and compare its outputs with those it had.

    Args:
        model: Run in evaluation mode.
        example_inputs: What to run it on.
        before: Its outputs before the cut.
        tolerance: Largest relative difference; None for what rounding explains.
    """
    limit = tolerance_for(before) if tolerance is None else tolerance
    try:
        return Comparison(*difference(before, outputs(model, example_inputs)), limit)
    except Exception as raised:  # forward() of a cut model may fail in any way
        return Comparison(0.0, 0.0, limit, first_line(raised))


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and the same relative to the largest value.

    Raises:
        ValueError: The shapes differ.
    """
    error, relative = 0.0, 0.0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            raise ValueError(
                f"an output changed its shape from {tuple(a.shape)} to {tuple(b.shape)}"
            )
        if not a.numel():
            continue
        distance = float((a.double() - b.double()).abs().nan_to_num(nan=float("inf")).max())
        largest = float(a.double().abs().max())
        error = max(error, distance)
        relative = max(relative, distance / largest if largest else distance)
    return error, relative


def tolerance_for(values: Sequence[Tensor]) -> float:
    """Largest relative difference that rounding alone explains in these dtypes."""
    return max((_TOLERANCE.get(v.dtype, _HALF_TOLERANCE) for v in values), default=_HALF_TOLERANCE)


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")
