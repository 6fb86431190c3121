"""The curve through what was measured."""

from __future__ import annotations

import json

import pytest

from decayprune.latency.bend import Bend


def test_it_goes_through_its_points_and_on_below_them() -> None:
    assert Bend()(0.3) == 0.3
    curve = Bend(((0.2, 0.4), (0.6, 0.6)))
    assert [curve(x) for x in (0.2, 0.6, 1.0)] == [0.4, 0.6, 1.0]
    assert curve(0.4) == pytest.approx(0.5)
    assert curve(0.8) == pytest.approx(0.8)
    assert curve(0.0) == pytest.approx(0.3)
    assert Bend(((0.5, 0.1),))(0.0) == 0.0  # and never below nothing


def test_points_that_contradict_each_other_meet_in_the_middle() -> None:
    curve = Bend(((0.2, 0.3), (0.6, 0.5)))
    assert curve.through(0.4, 0.4).points == ((0.2, 0.3), (0.4, 0.4), (0.6, 0.5))
    assert _near(curve.through(0.4, 0.7), (0.2, 0.3), (0.5, 0.6))
    assert _near(curve.through(0.4, 0.2), (0.3, 0.25), (0.6, 0.5))
    assert _near(curve.through(0.6, 0.4), (0.2, 0.3), (0.6, 0.45))
    assert _near(curve.through(0.1, 0.7), (0.3, 0.5))


def _near(curve: Bend, *points: tuple[float, float]) -> bool:
    return [pytest.approx(point) for point in points] == list(curve.points)


def test_what_proves_nothing_is_passed_over_and_what_is_no_faster_is_a_little() -> None:
    curve = Bend(((0.2, 0.3),))
    for point in ((0.0, 0.1), (1.0, 1.0), (0.5, 0.0), (0.5, float("nan")), (0.5, float("inf"))):
        assert curve.through(*point) == curve
    assert curve.through(0.6, 1.3).points == ((0.2, 0.3), (0.6, 0.9))


@pytest.mark.parametrize("points", [((0.5, 0.5), (0.4, 0.6)), ((0.5, 1.0),), ((-0.1, 0.2),)])
def test_a_curve_that_does_not_rise_is_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="shares rise between 0 and 1"):
        Bend(points)


def test_its_state_is_plain_and_checked() -> None:
    curve = Bend(((0.2, 0.4),))
    assert Bend.from_state_dict(json.loads(json.dumps(curve.state_dict()))) == curve
    for state in (None, [[1]], [["a", "b"]], [[0.5, 2.0]]):
        with pytest.raises(ValueError, match="measurements of this pruner state are damaged"):
            Bend.from_state_dict(state)
