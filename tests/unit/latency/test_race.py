"""Calls that take turns, on clocks made up."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch

from decayprune.latency import race
from decayprune.latency.race import Race, fastest, interval, known, paired


class Clock:
    """A clock that calls move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def race(self, runs: int, seconds: float = 30.0) -> Race:
        return Race(runs, clock=self.read, seconds=seconds, wall=self.read)

    def call(self, *seconds: float) -> race.Call:
        endless = itertools.cycle(seconds)

        def run() -> None:
            self.now += next(endless)

        return run


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_medians_of_calls_that_agree_need_no_more_rounds_than_asked_for(clock: Clock) -> None:
    found = clock.race(6).times([clock.call(0.02), clock.call(0.01)], 1)
    assert [len(times) for times in found] == [6, 6]
    assert clock.race(6).medians([clock.call(0.02), clock.call(0.01)]) == pytest.approx((20, 10))


def test_short_calls_are_repeated_until_the_clock_sees_them(clock: Clock) -> None:
    calls = []
    clock.race(1).times([lambda: calls.append(clock.call(0.001)()), clock.call(0.1)], 1)
    assert len(calls) == 3 + 4 * 5  # to see how long it takes; four rounds, as one proves nothing


def test_a_machine_that_shakes_is_timed_longer_and_never_forever(clock: Clock) -> None:
    shaky = clock.call(0.01, 0.02, 0.03, 0.015, 0.025)
    found = clock.race(6).times([shaky, clock.call(0.01)], 1)
    assert [len(times) for times in found] == [24, 24]
    # After half a minute: what was asked for, and not a round more.
    slow = clock.call(5.0, 9.0, 1.0)
    assert len(clock.race(6, seconds=30.0).times([slow, clock.call(5.0)], 1)[0]) == 6


def test_calls_that_take_long_are_not_warmed_up_more_than_once(clock: Clock) -> None:
    calls = []
    slow = clock.call(5.0)
    clock.race(3, seconds=4.0).times([lambda: calls.append(slow()), clock.call(5.0)], 1)
    assert len(calls) == 1 + 3


def test_of_one_thread_the_processor_s_time_counts() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = Race.on(torch.device("cpu"), 3).clock
        assert Race.on(torch.device("mps"), 3).clock is time.perf_counter
        torch.set_num_threads(2)
        assert Race.on(torch.device("cpu"), 3).clock is time.perf_counter
    finally:
        torch.set_num_threads(threads)
    fine = time.get_clock_info("process_time").resolution < 1e-4
    assert one is (time.process_time if fine else time.perf_counter)


def test_of_variants_the_fastest_counts(clock: Clock) -> None:
    shaky = clock.call(0.05, 0.2, 0.9)
    found = clock.race(6).times([clock.call(0.02), shaky, shaky, clock.call(0.01)], 2)
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
