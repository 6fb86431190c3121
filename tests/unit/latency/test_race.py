"""Calls that take turns, on clocks made up."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from decayprune.latency import race
from decayprune.latency.race import Race, fastest, interval, known, paired


class Clock:
    """A clock that calls move on, and that says how often each was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        tick = SimpleNamespace(perf_counter=lambda: self.now, monotonic=lambda: self.now)
        monkeypatch.setattr(race, "time", tick)

    def call(self, *seconds: float) -> race.Call:
        endless = itertools.cycle(seconds)

        def run() -> None:
            self.now += next(endless)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_medians_of_calls_that_agree_need_no_more_rounds_than_asked_for(clock: Clock) -> None:
    found = Race(runs=6).times([clock.call(0.02), clock.call(0.01)], 1)
    assert [len(times) for times in found] == [6, 6]
    assert Race(runs=6).medians([clock.call(0.02), clock.call(0.01)]) == pytest.approx((20, 10))


def test_short_calls_are_repeated_until_the_clock_sees_them(clock: Clock) -> None:
    calls = []
    Race(runs=1).times([lambda: calls.append(clock.call(0.001)()), clock.call(0.1)], 1)
    assert len(calls) == 3 + 4 * 5  # to see how long it takes; four rounds, as one proves nothing


def test_a_machine_that_shakes_is_timed_longer_and_never_forever(clock: Clock) -> None:
    shaky = clock.call(0.01, 0.02, 0.03, 0.015, 0.025)
    found = Race(runs=6).times([shaky, clock.call(0.01)], 1)
    assert [len(times) for times in found] == [24, 24]
    # After half a minute: what was asked for, and not a round more.
    slow = clock.call(5.0, 9.0, 1.0)
    assert len(Race(runs=6).times([slow, clock.call(5.0)], 1)[0]) == 6


def test_of_variants_the_fastest_counts(clock: Clock) -> None:
    shaky = clock.call(0.05, 0.2, 0.9)
    found = Race(runs=6).times([clock.call(0.02), shaky, shaky, clock.call(0.01)], 2)
    assert [len(times) for times in found] == [6] * 4  # the slower ones do not matter
    assert fastest(found[:2]) is found[0]
    assert fastest(found[2:]) is found[3]


def test_ratios_are_those_of_rounds() -> None:
    assert paired([2.0, 4.0], [1.0, 8.0]) == [2.0, 0.5]


def test_the_interval_counts_coins() -> None:
    """Of 30 values the 10th and the 21st: as every table of order statistics says."""
    values = [float(v) for v in range(1, 31)]
    assert interval(values) == (10, 21)
    assert interval(values[:6]) == (1, 6)
    assert interval(values[:9]) == (2, 8)
    assert interval(values[:5]) is None


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(1000):
        low, high = interval(torch.rand(25, generator=generator).square().tolist()) or (2, 2)
        held += low <= 0.25 <= high
    assert held >= 950 - 3 * math.sqrt(1000 * 0.05 * 0.95)


def test_narrow_intervals_are_known() -> None:
    assert known((1.0, 1.04))
    assert not known((1.0, 1.06))
    assert not known(None)
