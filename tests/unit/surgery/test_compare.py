"""When outputs count as the same, and how a difference is worded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from decayprune.surgery.compare import compare, difference, first_line, tolerance_for

ONE = [torch.tensor([1.0, -4.0])]


def test_a_difference_is_absolute_and_relative_to_the_largest() -> None:
    assert difference(ONE, [torch.tensor([1.0, -3.0])]) == (1.0, 0.25)
    assert difference(ONE, ONE) == (0.0, 0.0)
    assert difference([torch.zeros(2)], [torch.tensor([0.0, 3.0])]) == (3.0, 3.0)
    assert difference([torch.zeros(0)], [torch.zeros(0)]) == (0.0, 0.0)


def test_the_worst_of_several_outputs_counts() -> None:
    more = [torch.tensor([100.0]), torch.tensor([1.0])]
    assert difference(more, [torch.tensor([99.0]), torch.tensor([1.5])]) == (1.0, 0.5)


def test_what_is_not_a_number_is_a_difference() -> None:
    assert difference(ONE, [torch.tensor([1.0, float("nan")])])[0] == float("inf")


def test_a_change_of_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"changed its shape from \(2,\) to \(1,\)"):
        difference(ONE, [torch.ones(1)])


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float64], 1e-9),
        ([torch.float32], 1e-4),
        ([torch.float64, torch.float32], 1e-4),
        ([torch.bfloat16], 2e-2),
        ([], 2e-2),
    ],
)
def test_the_least_precise_output_sets_the_limit(dtypes: list, expected: float) -> None:
    assert tolerance_for([torch.zeros(1, dtype=dtype) for dtype in dtypes]) == expected


def test_an_error_in_one_line() -> None:
    assert first_line(ValueError("two\nlines")) == "ValueError: two"
    assert first_line(ValueError()) == "ValueError"


class Shifted(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        if self.shift < 0:
            raise RuntimeError("mat1 and mat2\ndo not fit")
        return x + self.shift


def test_a_comparison_says_what_happened() -> None:
    x = torch.ones(3)
    assert compare(Shifted(0.0), x, [x]).same
    assert compare(Shifted(1e-5), x, [x]).same
    changed = compare(Shifted(0.5), x, [x])
    assert not changed.same
    assert str(changed) == "outputs changed by 5.0e-01 (relative)"
    assert compare(Shifted(0.5), x, [x], tolerance=0.6).same
    assert not compare(Shifted(1e-5), x, [x], tolerance=0.0).same
    failed = compare(Shifted(-1), x, [x], tolerance=1e9)
    assert not failed.same
    assert str(failed) == "forward() fails: RuntimeError: mat1 and mat2"


def test_an_interrupt_is_no_comparison() -> None:
    class Stopped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(Stopped(), torch.ones(1), [torch.ones(1)])
