"""Integers that remember where they come from, so that a cut changes what is read as a width alone.

A ``forward`` computes shapes from integers: attributes of its modules (``self.num_heads``) and
extents of activations (``x.shape[1]``). While the twin is traced both are a :class:`Size`, an
``int`` that knows its origin. A rule that is given one as the extent of a labelled dimension tells
:class:`Readings`, which is how an attribute that counts a width is told from one that equals it by
chance. What Python computes otherwise (``int(...)``, a sum) is a plain integer again, of which
nothing is known.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from decayprune.structures.tracing.labels import Partition, core, varying


class Origin(NamedTuple):
    """An integer attribute of a module; ``name.2`` is the third of a tuple or list."""

    module: str
    attribute: str


@dataclass(frozen=True, eq=False)
class Reading:
    """An attribute was read as a width: ``attribute * factor`` counts the rows of ``labels``.

    Attributes:
        origin: The attribute.
        labels: Shape ``(width, repeats)``: labels of each index, wherever else they vary.
        factor: What the forward multiplied it by.
    """

    origin: Origin
    labels: Tensor
    factor: Fraction


class Size(int):
    """An integer that is an attribute, or the extent of labelled rows, times a factor.

    Attributes:
        of: The attribute, or labels of shape ``(width, repeats)``.
        factor: The integer is this many times the attribute or the number of rows.
    """

    of: Origin | Tensor
    factor: Fraction
    _readings: weakref.ref[Readings]

    def __new__(
        cls, value: int, readings: Readings, of: Origin | Tensor, factor: Fraction = Fraction(1)
    ) -> Size:
        """A size."""
        self = super().__new__(cls, value)
        self.of, self.factor, self._readings = of, factor, weakref.ref(readings)
        return self

    def __reduce__(self) -> Any:
        """Copied, it is a plain integer."""
        return int, (int(self),)

    __hash__ = int.__hash__

    def _times(self, value: Any, factor: Fraction) -> Any:
        readings = self._readings()
        exact = readings is not None and value == int(self) * factor
        return Size(value, readings, self.of, self.factor * factor) if exact and readings else value

    def __mul__(self, other: Any) -> Any:
        """Times an integer, or a size of which the trail is lost."""
        value = super().__mul__(other)
        return self._times(value, Fraction(other)) if type(other) is int else value

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        """Divided without a rest, or a plain integer."""
        value = super().__floordiv__(other)
        if type(other) is int:
            return self._times(value, Fraction(1, other))
        readings = self._readings()
        if readings is not None and isinstance(self.of, Origin):
            readings.calculated.add(self.of)  # of two attributes: which of them a cut changes?
        return value

    def __neg__(self) -> Any:
        """Counted from the end."""
        return self._times(super().__neg__(), Fraction(-1))

    def __eq__(self, other: object) -> bool:
        """Equal; an attribute that equals an extent is an extent."""
        same = super().__eq__(other)
        readings = self._readings()
        if readings is not None:
            readings.compared(self, other, same is True)
        return same

    def __ne__(self, other: object) -> bool:
        """Not equal."""
        return not self == other


def _calculates(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def calculate(self: Size, *others: Any) -> Any:
        readings = self._readings()
        if readings is not None and isinstance(self.of, Origin):
            readings.calculated.add(self.of)
        return plain(self, *others)

    calculate.__name__ = name
    return calculate


_CALCULATIONS = """
    add radd sub rsub mod rmod pow rpow truediv rtruediv rfloordiv divmod rdivmod float lt le gt ge
"""
for _name in _CALCULATIONS.split():
    setattr(Size, f"__{_name}__", _calculates(f"__{_name}__"))


class Readings:
    """Which attributes were read as which widths.

    Attributes:
        found: Every reading, in order.
        calculated: Attributes that the model computed something else with.
    """

    def __init__(self) -> None:
        self.found: list[Reading] = []
        self.calculated: set[Origin] = set()

    def note(self, model: nn.Module) -> None:
        """Let the integers of a twin's modules remember where they come from."""
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            space, of_torch = vars(module), _is_of_torch(module)
            for attribute, value in list(space.items()):
                if type(value) is int and value > 1:
                    space[attribute] = Size(value, self, Origin(name, attribute))
                elif not of_torch and _is_list_of_sizes(value):
                    places = (Origin(name, f"{attribute}.{i}") for i in range(len(value)))
                    noted = [Size(n, self, at) for n, at in zip(value, places, strict=True)]
                    space[attribute] = type(value)(noted)

    def extents(self, shape: torch.Size, labels: Tensor) -> torch.Size:
        """A shape of which every labelled extent remembers its labels."""
        sizes = [
            Size(n, self, rows(labels, d)) if d in varying(labels) else n
            for d, n in enumerate(shape)
        ]
        return torch.Size(sizes)

    def compared(self, one: Size, other: object, same: bool) -> None:
        """An attribute that is found equal to an extent counts it; else the model chose by it."""
        sizes = [one, other] if isinstance(other, Size) else [one]
        extents = [(n.of, n.factor) for n in sizes if isinstance(n.of, Tensor)]
        for size in sizes:
            if not isinstance(size.of, Origin):
                continue
            if same and extents:
                rows_counted, factor = extents[0]
                self.found.append(Reading(size.of, rows_counted, size.factor / factor))
            else:
                self.calculated.add(size.of)

    def read(self, size: Any, labels: Tensor, dim: int) -> bool:
        """Say that an integer was given as the extent of a dimension of these labels.

        Returns:
            Whether it is an attribute, which can follow a cut.
        """
        if not self.is_attribute(size) or abs(size) != labels.shape[dim]:
            return False
        if dim in varying(labels):
            self.found.append(Reading(size.of, rows(labels, dim), abs(size.factor)))
        return True

    def is_attribute(self, value: Any) -> bool:
        """Whether an integer is an attribute of the model that is traced now."""
        # A function that caches its results may return those of another model.
        own = isinstance(value, Size) and value._readings() is self
        return own and isinstance(value.of, Origin)

    def extent(self, value: Any) -> tuple[Tensor, Fraction] | None:
        """Rows of labels that an integer counts, and the factor; None if it counts none."""
        own = isinstance(value, Size) and value._readings() is self
        return (value.of, value.factor) if own and isinstance(value.of, Tensor) else None

    def tie(self, partition: Partition) -> None:
        """Widths that one attribute counts lose as many: they leave together."""
        first: dict[tuple[Origin, Fraction], Tensor] = {}
        for reading in self.found:
            if reading.labels.shape[1] == 1:
                one = first.setdefault((reading.origin, reading.factor), reading.labels)
                if one.shape == reading.labels.shape:
                    at = ".".join(part for part in reading.origin if part)
                    partition.unify(one, reading.labels, f"`{at}` counts a fixed width, too")


def rows(labels: Tensor, dim: int) -> Tensor:
    """Labels with one dimension first and all others behind it, shape ``(width, repeats)``."""
    own = core(labels).movedim(dim, 0)
    return own.reshape(own.shape[0], -1)


def _is_list_of_sizes(value: Any) -> bool:
    kind = type(value) in (tuple, list) and len(value) > 0
    return kind and all(type(item) is int for item in value)


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


@contextmanager
def einops_uncached() -> Iterator[None]:
    """Let einops compute every shape anew: its cache would answer with those of another block."""
    einops: Any = sys.modules.get("einops.einops")
    cached = getattr(einops, "_reconstruct_from_shape", None)
    plain = getattr(cached, "__wrapped__", None)
    if plain is None:
        yield
        return
    einops._reconstruct_from_shape = plain
    try:
        yield
    finally:
        einops._reconstruct_from_shape = cached
