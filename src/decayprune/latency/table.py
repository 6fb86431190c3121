"""Measured times of a model's layers at a few widths, and what lies between them.

A :class:`Table` is frozen: whoever measures makes one, a checkpoint carries it along, and a pruner
that goes on decides by the times its first half was decided by.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerKey:
    """What decides how long a call of a layer takes: calls of equal key take equal time.

    Attributes:
        kind: Class of the layer.
        settings: Its sizes and options, as it prints them.
        shape: Of its input.
        stride: Of its input, which tells the memory format.
        dtype: Of its input.
        cut: Whether the width that goes in, and the one that comes out, can be cut.
    """

    kind: str
    settings: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    cut: tuple[bool, bool]

    @classmethod
    def of(cls, layer: nn.Module, example: Tensor, cut: tuple[bool, bool]) -> LayerKey:
        """The key of a call.

        Args:
            layer: Which is called.
            example: With this input.
            cut: Whether its two widths can be cut.
        """
        shape, stride = tuple(example.shape), example.stride()
        return cls(type(layer).__name__, layer.extra_repr(), shape, stride, example.dtype, cut)

    def contiguous(self) -> LayerKey:
        """The same in contiguous memory format."""
        strides = [prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        return replace(self, stride=tuple(strides))

    def __str__(self) -> str:  # as it is saved since version 0.3
        return repr((self.kind, self.settings, self.shape, self.stride, self.dtype, *self.cut))


@dataclass(frozen=True)
class Grid:
    """Times of one layer at pairs of widths; bilinear between them, and towards no width at all.

    Attributes:
        ins: Shares of the width that goes in, rising from 0 to 1.
        outs: Shares of the width that comes out, likewise.
        times: At each pair of them; nothing takes no time.

    Raises:
        ValueError: It is no such grid.
    """

    ins: tuple[float, ...]
    outs: tuple[float, ...]
    times: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for shares in (self.ins, self.outs):
            rises = all(a < b for a, b in pairwise(shares))
            if len(shares) < 2 or not rises or (shares[0], shares[-1]) != (0, 1):
                raise ValueError(f"shares of a width rise from 0 to 1, found {shares}")
        if [len(row) for row in self.times] != [len(self.outs)] * len(self.ins):
            raise ValueError("a time for each pair of widths is missing")
        if not all(math.isfinite(t) and t >= 0 for row in self.times for t in row):
            raise ValueError("times are numbers from 0")

    @classmethod
    def measured(cls, ins: Sequence[int], outs: Sequence[int], times: Tensor) -> Grid:
        """A grid of times at widths; times never fall with a width, however the clock shook.

        Args:
            ins: Widths that go in, rising to the layer's own.
            outs: Widths that come out, likewise.
            times: Shape ``(len(ins), len(outs))``.
        """
        times = times.cummax(0).values.cummax(1).values
        padded = torch.nn.functional.pad(times, (1, 0, 1, 0))
        return cls(
            (0.0, *(width / ins[-1] for width in ins)),
            (0.0, *(width / outs[-1] for width in outs)),
            tuple(tuple(row) for row in padded.tolist()),
        )

    def __call__(self, a: float, b: float) -> float:
        """Time at some shares of the two widths."""
        (i, x), (j, y) = _place(self.ins, a), _place(self.outs, b)
        low, high = self.times[i], self.times[i + 1]
        left, right = (1 - x) * low[j] + x * high[j], (1 - x) * low[j + 1] + x * high[j + 1]
        return (1 - y) * left + y * right


def _place(grid: Sequence[float], share: float) -> tuple[int, float]:
    """Index of the grid's interval that a share lies in, and where in it."""
    index = max(bisect_left(grid, share) - 1, 0)
    return index, (share - grid[index]) / (grid[index + 1] - grid[index])


@dataclass(frozen=True)
class Table:
    """All times of a model, in the unit of the clock that measured them.

    Attributes:
        layers: Grids of the layers, by the kind of their calls.
        scale: What to multiply the grids with: timed alone, layers may take longer than in a row.
        rest: Time of the dense model outside of these layers.
        fixed: As much of it stays, whatever is cut; the rest shrinks with the activations.
        whole: Time of the dense model.
        anchors: Pairs of an estimated and a measured share of that time, between 0 and 1, both
            rising: estimates are bent to go through them.

    Raises:
        ValueError: A figure is out of range.
    """

    layers: Mapping[LayerKey, Grid]
    scale: float
    rest: float
    whole: float
    fixed: float = 0.0
    anchors: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("scale", "rest", "whole", "fixed"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} is a number from 0, found {value!r}")
        for (e, m), (f, n) in pairwise([(0.0, 0.0), *self.anchors, (1.0, 1.0)]):
            if not (e < f and m <= n):
                raise ValueError(f"anchors rise between 0 and 1, found {self.anchors}")

    def at(self, calls: Iterable[tuple[LayerKey, float, float]], activations: float) -> float:
        """Time of a forward pass.

        Args:
            calls: Each call of a layer: its kind, and what is left of its two widths.
            activations: What is left of all activations.
        """
        share = self.unbent(calls, activations)
        points = [(0.0, 0.0), *self.anchors, (1.0, 1.0)]
        for (e, m), (f, n) in pairwise(points):
            if share <= f:
                return self.whole * (m + (share - e) / (f - e) * (n - m))
        return self.whole * share

    def unbent(self, calls: Iterable[tuple[LayerKey, float, float]], activations: float) -> float:
        """The sum of the parts, as a share of the dense time, before it is bent to the anchors."""
        rest = self.fixed + (self.rest - self.fixed) * activations
        return (self.layers_at(calls) + rest) / self.whole

    def layers_at(self, calls: Iterable[tuple[LayerKey, float, float]]) -> float:
        """Time of the layers alone."""
        return self.scale * sum(self.layers[key](a, b) for key, a, b in calls)

    def anchored(self, estimated: float, measured: float) -> Table:
        """The same with one more anchor, which wins over those that contradict it.

        Args:
            estimated: Share of the dense time, as :meth:`unbent` gives it.
            measured: Share that it really was.
        """
        if not (0 < estimated < 1 and measured > 0):
            return self
        measured = min(measured, 1.0)
        fits = [
            (e, m) for e, m in self.anchors if (e < estimated) == (m < measured) and e != estimated
        ]
        return replace(self, anchors=tuple(sorted([*fits, (estimated, measured)])))

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        layers = {
            str(key): {"in": [*grid.ins], "out": [*grid.outs], "times": [[*r] for r in grid.times]}
            for key, grid in self.layers.items()
        }
        figures = {n: getattr(self, n) for n in ("scale", "rest", "whole", "fixed")}
        return {"layers": layers, **figures, "anchors": [[*pair] for pair in self.anchors]}

    @classmethod
    def from_state_dict(cls, state: Any, named: Mapping[str, LayerKey]) -> Table:
        """The table that :meth:`state_dict` described, of this version or an earlier one.

        Args:
            state: What it gave.
            named: Kinds of calls that the model has, by the names they have in the state.

        Raises:
            ValueError: It is damaged, or of other layers, another input, or another format.
        """
        try:
            found = state["layers"]
            if set(found) != set(named):
                odd = min(set(found) ^ set(named))
                raise ValueError(f"the layers or their inputs are others, such as {odd}")
            layers = {
                named[name]: Grid(
                    tuple(map(float, grid["in"])),
                    tuple(map(float, grid["out"])),
                    tuple(tuple(map(float, row)) for row in grid["times"]),
                )
                for name, grid in found.items()
            }
            figures = {n: float(state[n]) for n in ("scale", "rest", "whole", "fixed")}
            return cls(layers, **figures, anchors=_anchors(state))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"The latency measurements of this pruner state do not fit: {error}. Build the "
                "pruner with the model and the example_inputs that it was saved with, or start "
                "anew."
            ) from error


def _anchors(state: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    if "anchors" in state:
        return tuple((float(e), float(m)) for e, m in state["anchors"])
    # Until version 0.4 there was one, the model of halved widths.
    half = float(state["estimated half"]), float(state["measured half"])
    return (half,) if 0 < half[0] < 1 else ()
