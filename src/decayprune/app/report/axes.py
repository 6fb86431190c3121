"""Coordinates that every plot shares: axes, their ticks, lines, and cells that show figures.

A plot area is 1000 wide and 100 high, whatever its size on the page: it is stretched to fit, and
all text stays outside, so that it is never distorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH = 1000.0
HEIGHT = 100.0


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis; ``at`` maps a value to its share of the axis."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return where a value lies, 0 at the low end and 1 at the high end."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def x(self, value: float) -> float:
        """Return the abscissa of a value in plot coordinates."""
        return round(WIDTH * self.at(value), 1)

    def y(self, value: float) -> float:
        """Return the ordinate of a value in plot coordinates (which grow downwards)."""
        return round(HEIGHT * (1 - self.at(value)), 2)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in per cent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Cell:
    """An invisible rectangle that shows its figures under the pointer."""

    x: float
    width: float
    title: str


def ticks(axis: Axis, label: Callable[[float], str], about: int = 5) -> list[Tick]:
    """Return round places along an axis, about as many as asked for.

    >>> [tick.label for tick in ticks(Axis(0, 1000), "{:.0f}".format)]
    ['0', '200', '400', '600', '800', '1000']
    """
    places = _powers(axis, about) if axis.log else []
    if len(places) < 2:
        places = _multiples(axis, about)
    return [Tick(round(100 * axis.at(place), 2), label(place)) for place in places]


def _multiples(axis: Axis, about: int) -> list[float]:
    rough = (axis.high - axis.low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= 0.999 * rough)
    first, last = math.ceil(axis.low / stride - 1e-9), math.floor(axis.high / stride + 1e-9)
    return [i * stride for i in range(first, last + 1)]


def _powers(axis: Axis, about: int) -> list[float]:
    exponents = range(math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
    return [10.0**i for i in exponents[:: math.ceil(len(exponents) / about) or 1]]


def step_axis(steps: Sequence[int]) -> Axis:
    """Return the axis from the first step to the last, at least one step long."""
    low, high = min(steps), max(steps)
    return Axis(low, max(high, low + 1))


def step_ticks(axis: Axis) -> list[Tick]:
    """Return round whole steps along an axis."""
    return [tick for tick in ticks(axis, "{:,.10g}".format) if "." not in tick.label]


def polyline(points: Sequence[tuple[float, float] | None]) -> str:
    """Return the SVG path through points; it breaks where there is None."""
    path, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        path.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "L"
    return "".join(path)
