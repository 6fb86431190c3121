"""Calls that take turns on the clock, until it is known how they compare.

One call after the other, round by round, meets a machine in the same moods. Each round gives a
ratio, and ratios of rounds a distribution-free interval for their median; rounds go on until it is
narrow, or until it is clear that on this machine, now, it will not be.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Clock = Callable[[], float]

PRECISION = 1.05
"""Upper end of an interval over its lower one, from which on a ratio counts as known."""

_MOST = 4  # times as many rounds as asked for, if they do not agree


def clock_of(device: torch.device) -> Clock:
    """The clock that others on this machine disturb least, in seconds.

    One thread takes as much time of a processor as time goes by, unless somebody else has the
    processor: so the processor's time counts. Several threads wait for each other, and a GPU works
    while its processor does not: there it is the clock on the wall.

    Args:
        device: The models' own.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    fine = time.get_clock_info("process_time").resolution < 1e-4  # not on Windows
    return time.process_time if alone and fine else time.perf_counter


@dataclass(frozen=True)
class Race:
    """How calls are timed against each other.

    Attributes:
        runs: Rounds at least.
        min_run_ms: A run repeats its call until it lasts about this long.
        synchronize: Waits until a call is really over.
        clock: What is read, in seconds.
        seconds: After so many on the wall, where somebody waits, no more rounds than asked for.
        wall: What tells them.
    """

    runs: int
    min_run_ms: float = 5.0
    synchronize: Call = lambda: None
    clock: Clock = time.perf_counter
    seconds: float = 30.0
    wall: Clock = time.perf_counter

    @classmethod
    def on(
        cls, device: torch.device, runs: int, *, min_run_ms: float = 5.0, seconds: float = 30.0
    ) -> Race:
        """A race of calls that run on a device.

        Args:
            device: Theirs.
            runs: As for the race.
            min_run_ms: As for the race.
            seconds: As for the race.
        """
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        return cls(runs, min_run_ms, wait, clock_of(device), seconds)

    def medians(self, calls: Sequence[Call]) -> tuple[float, float]:
        """Median milliseconds of two calls that take turns."""
        before, after = self.times(calls, 1)
        return statistics.median(before), statistics.median(after)

    def times(self, calls: Sequence[Call], sides: int) -> list[list[float]]:
        """Milliseconds of calls that take turns.

        Args:
            calls: The first ``sides`` of them against the others.
            sides: How many variants of the first there are.

        Returns:
            Of each call, a time per round.
        """
        once = [self._once(call) for call in calls]
        repeats = [max(1, round(self.min_run_ms / max(t, 1e-6))) for t in once]
        found: list[list[float]] = [[] for _ in calls]
        began = self.wall()
        for round_ in range(_MOST * self.runs):
            # Who goes first alternates: a warm cache favours the next.
            for i in range(len(calls)) if round_ % 2 == 0 else reversed(range(len(calls))):
                found[i].append(self._time(calls[i], repeats[i]))
            if round_ + 1 < self.runs:
                continue
            ratios = paired(fastest(found[:sides]), fastest(found[sides:]))
            if known(interval(ratios)) or self.wall() - began > self.seconds:
                break
        return found

    def _once(self, call: Call) -> float:
        """About how long a call takes; one that takes long is not called for that again."""
        first = self._time(call, 1)
        again = range(2 if first < 20 * self.min_run_ms else 0)
        return min([first, *(self._time(call, 1) for _ in again)])

    def _time(self, call: Call, repeats: int) -> float:
        start = self.clock()
        for _ in range(repeats):
            call()
        self.synchronize()
        return (self.clock() - start) / repeats * 1000


def fastest(variants: Sequence[Sequence[float]]) -> Sequence[float]:
    """The times of the variant with the lowest median."""
    return min(variants, key=statistics.median)


def paired(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Ratio of each round."""
    return [a / max(b, 1e-9) for a, b in zip(before, after, strict=True)]


def interval(ratios: Sequence[float]) -> tuple[float, float] | None:
    """Where the median lies with a confidence of 95 %, whatever the distribution.

    The median lies outside of the ``k``-th lowest and ``k``-th highest of ``n`` values as often as
    fewer than ``k`` of ``n`` coins show heads, or tails.

    Returns:
        Lower and upper end; None of fewer than six values, which prove nothing.
    """
    ordered, n = sorted(ratios), len(ratios)
    below, outside = 0, 0.0
    while below < (n - 1) // 2 and outside + 2 * math.comb(n, below) / 2**n <= 0.05:
        outside += 2 * math.comb(n, below) / 2**n
        below += 1
    return (ordered[below - 1], ordered[n - below]) if below else None


def known(ends: tuple[float, float] | None) -> bool:
    """Whether there is an interval, narrow enough to rely on a ratio."""
    return ends is not None and ends[1] < PRECISION * ends[0]
