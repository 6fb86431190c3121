"""Rounds begin where the formula says, and every step tells how many have begun."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decayprune.selection.schedule import Schedule


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    start, span = draw(st.integers(0, 30)), draw(st.integers(0, 60))
    return Schedule(start=start, stop=start + span, rounds=draw(st.integers(1, 80)), decay_steps=1)


@given(schedules(), st.integers(0, 120))
def test_rounds_begun_counts_the_rounds_whose_step_has_come(schedule: Schedule, step: int) -> None:
    begun = [i for i in range(schedule.rounds) if schedule.begins(i) <= step]
    assert schedule.rounds_begun(step) == len(begun)


@given(schedules())
def test_rounds_lie_between_start_and_stop_in_order(schedule: Schedule) -> None:
    steps = [schedule.begins(i) for i in range(schedule.rounds)]
    assert steps == sorted(steps)
    assert steps[0] == max(1, schedule.start)
    assert steps[-1] <= max(1, schedule.stop)


def test_four_rounds_worked_out_by_hand() -> None:
    schedule = Schedule(start=10, stop=30, rounds=4, decay_steps=5)
    assert [schedule.begins(i) for i in range(4)] == [10, 15, 20, 25]
    assert [schedule.rounds_begun(step) for step in (9, 10, 14, 15, 25, 99)] == [0, 1, 1, 2, 4, 4]


@pytest.mark.parametrize(
    ("total", "start", "expected"),
    [(1000, 0, (0, 100, 100)), (1000, 500, (500, 550, 50)), (3, 0, (0, 1, 1)), (1, 0, (0, 1, 1))],
)
def test_for_run_takes_a_tenth_of_what_is_left(
    total: int, start: int, expected: tuple[int, int, int]
) -> None:
    schedule = Schedule.for_run(total, start=start)
    assert (schedule.start, schedule.stop, schedule.decay_steps) == expected
    assert schedule.rounds == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"start": -1}, ValueError, "start is a step, 0 or later; found -1"),
        ({"start": 6}, ValueError, "must not come before start; found start=6, stop=5"),
        ({"rounds": 0}, ValueError, "rounds is at least 1, found 0"),
        ({"decay_steps": 0}, ValueError, r"at least 1 \(an abrupt cut\), found 0"),
        ({"stop": 5.0}, TypeError, r"Schedule\.stop is a whole number of steps, found 5\.0"),
    ],
)
def test_what_is_no_schedule(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Schedule(**{"stop": 5, "decay_steps": 3, **options})


@pytest.mark.parametrize("start", [0, 7])
def test_at_once_is_one_round_without_a_decay(start: int) -> None:
    found = Schedule.at_once(start=start)
    assert found == Schedule(start=start, stop=start, decay_steps=1)
    assert [found.rounds_begun(step) for step in (max(1, start) - 1, max(1, start))] == [0, 1]


def test_a_run_that_ends_before_it_starts() -> None:
    with pytest.raises(
        ValueError, match=r"at least 1 step after start=10, found 0 \(total_steps=10"
    ):
        Schedule.for_run(10, start=10)
