"""Schedules of a decay and the factors that follow from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decayprune.method.decay import CURVES, cosine, linear, scale_factors, target_length


@pytest.mark.parametrize("name", sorted(CURVES))
class TestEveryCurve:
    def test_falls_from_one_to_zero_exactly(self, name: str) -> None:
        for dtype in (torch.float32, torch.float64):
            values = CURVES[name](torch.linspace(0, 1, 101, dtype=dtype))
            assert values[0] == 1
            assert values[-1] == 0
            assert bool((values.diff() < 0).all())

    def test_target_at_every_age(self, name: str) -> None:
        formula = {"linear": lambda p: 1 - p, "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2}
        for span in (1, 2, 7):
            for age in range(span + 2):
                found = target_length(
                    torch.tensor([3.0], dtype=torch.float64),
                    torch.tensor([age]),
                    torch.tensor([span]),
                    CURVES[name],
                )
                expected = 3 * formula[name](age / span) if age < span else 0.0
                assert float(found) == pytest.approx(expected, abs=1e-6)
                assert (float(found) == 0) == (age >= span)


def test_pinned_values() -> None:
    progress = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert linear(progress).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    expected = torch.tensor([1.0, 0.8535534, 0.5, 0.1464466, 0.0])
    torch.testing.assert_close(cosine(progress), expected)


def test_each_structure_has_its_own_age() -> None:
    start = torch.tensor([2.0, 2.0, 8.0])
    age, span = torch.tensor([1, 4, 9]), torch.tensor([4, 4, 10])
    found = target_length(start, age, span, linear)
    torch.testing.assert_close(found, torch.tensor([1.5, 0.0, 0.8]))


@given(
    length=st.floats(1e-30, 1e30),
    target=st.just(0.0) | st.floats(1e-30, 1e30),
)
def test_scaling_reaches_the_target(length: float, target: float) -> None:
    now, wanted = (torch.tensor([v], dtype=torch.float64) for v in (length, target))
    factor = scale_factors(now, wanted)
    torch.testing.assert_close(now * factor, wanted, rtol=1e-12, atol=0)


def test_what_has_no_length_stays_zero() -> None:
    found = scale_factors(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    assert found.tolist() == [0.0, 0.5]


def test_what_is_shorter_than_its_target_grows() -> None:
    length, target = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])
    assert scale_factors(length, target).tolist() == [2.0, 0.5]
