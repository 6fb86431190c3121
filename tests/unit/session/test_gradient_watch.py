"""Gradients that were written to, replaced or dropped since a step are told apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from decayprune.session.gradient_watch import GradientWatch


@pytest.fixture
def small() -> Tensor:
    return with_gradient(2)


def with_gradient(size: int) -> Tensor:
    parameter = torch.zeros(size, requires_grad=True)
    parameter.grad = torch.ones(size)
    return parameter


def replace(parameter: Tensor) -> None:
    parameter.grad = torch.ones_like(parameter)  # equal values, another object


@pytest.mark.parametrize(
    "change",
    [lambda p: p.grad.zero_(), lambda p: p.grad.mul_(1), lambda p: p.sum().backward(), replace],
    ids=["zeroed", "scaled", "accumulated", "replaced"],
)
def test_a_change_is_told_until_the_next_step(
    small: Tensor, change: Callable[[Tensor], object]
) -> None:
    watch = GradientWatch([with_gradient(8), small])
    watch.note()
    assert watch.changed() is None
    change(small)
    assert watch.changed() is small.grad
    watch.note()
    assert watch.changed() is None


def test_reading_is_no_change(small: Tensor) -> None:
    watch = GradientWatch([small])
    watch.note()
    assert small.grad is not None
    float(small.grad.norm())
    small.detach().add_(1)  # the weight is another matter
    assert watch.changed() is None


def test_gradients_that_are_dropped_are_no_change(small: Tensor) -> None:
    """Whoever needs them finds that there are none, which has an error of its own."""
    watch = GradientWatch([small])
    watch.note()
    small.grad = None
    assert watch.changed() is None


def test_before_the_first_step_nothing_has_changed(small: Tensor) -> None:
    watch = GradientWatch([small])
    small.grad.zero_()  # type: ignore[union-attr]
    assert watch.changed() is None


def test_the_smallest_parameter_that_has_a_gradient_stands_for_all(small: Tensor) -> None:
    frozen, large = torch.zeros(1), with_gradient(8)
    watch = GradientWatch([large, small, frozen])
    watch.note()
    large.grad.zero_()  # type: ignore[union-attr]
    assert watch.changed() is None
    small.grad.zero_()  # type: ignore[union-attr]
    assert watch.changed() is small.grad
