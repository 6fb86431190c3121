"""A curve from estimated shares to measured ones, through the points that were measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Bend:
    """A rising curve of straight pieces, which ends where all of a model is left.

    Attributes:
        points: Pairs of an estimated and a measured share of a dense model's time, between 0 and 1,
            both rising. The piece between the first two goes on below them.

    Raises:
        ValueError: They do not rise, or leave that range.
    """

    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for (e, m), (f, n) in pairwise([(0.0, 0.0), *self.points, (1.0, 1.0)]):
            if not (e < f and m < n):
                raise ValueError(f"shares rise between 0 and 1, found {self.points}")

    def __call__(self, share: float) -> float:
        """The measured share that belongs to an estimated one; linear where nothing is known."""
        ends = [*self.points, (1.0, 1.0)] if self.points else [(0.0, 0.0), (1.0, 1.0)]
        pieces = list(pairwise(ends))
        (e, m), (f, n) = next((p for p in pieces if share <= p[1][0]), pieces[-1])
        return max(0.0, m + (share - e) / (f - e) * (n - m))

    def through(self, estimated: float, measured: float) -> Bend:
        """The curve with one more point; points that contradict each other meet in the middle.

        Args:
            estimated: Share of the dense time.
            measured: What it really was. A model that is cut and no faster is taken for a little
                faster, as the curve has to rise.
        """
        if not (0 < estimated < 1 and 0 < measured < math.inf):
            return self
        risen: list[tuple[float, float, int]] = []  # and of how many points it is the mean
        new = (estimated, min(measured, (3 + estimated) / 4))
        for e, m in sorted([*self.points, new]):
            point = (e, m, 1)
            while risen and not (risen[-1][0] < point[0] and risen[-1][1] < point[1]):
                point = _mean(risen.pop(), point)
            risen.append(point)
        return Bend(tuple((e, m) for e, m, _ in risen))

    def state_dict(self) -> list[list[float]]:
        """Plain numbers."""
        return [[*point] for point in self.points]

    @classmethod
    def from_state_dict(cls, state: Any) -> Bend:
        """What :meth:`state_dict` described.

        Args:
            state: What it gave.

        Raises:
            ValueError: It is damaged.
        """
        try:
            return cls(tuple((float(e), float(m)) for e, m in state))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The latency measurements of this pruner state are damaged: {error}. Load a "
                "state that state_dict() returned, or start anew."
            ) from error


def _mean(a: tuple[float, float, int], b: tuple[float, float, int]) -> tuple[float, float, int]:
    (e, m, i), (f, n, j) = a, b
    return (i * e + j * f) / (i + j), (i * m + j * n) / (i + j), i + j
