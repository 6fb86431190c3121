"""When outputs count as the same, and how a difference is worded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from decayprune.surgery.compare import (
    Remembered,
    compare,
    difference,
    first_line,
    nothing_to_compare,
    proves_little,
    remember,
    remember_training,
    tolerance_for,
)

ONE = [torch.tensor([1.0, -4.0])]


def test_a_difference_is_absolute_and_relative_to_the_largest() -> None:
    assert difference(ONE, [torch.tensor([1.0, -3.0])])[:2] == (1.0, 0.25)
    assert difference(ONE, ONE)[:2] == (0.0, 0.0)
    assert difference([torch.zeros(2)], [torch.tensor([0.0, 3.0])])[:2] == (3.0, 3.0)
    assert difference([torch.zeros(0)], [torch.zeros(0)])[:2] == (0.0, 0.0)


def test_the_worst_of_several_outputs_counts() -> None:
    more = [torch.tensor([100.0]), torch.tensor([1.0])]
    assert difference(more, [torch.tensor([99.0]), torch.tensor([1.5])])[:2] == (1.0, 0.5)


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
    before = Remembered([x])
    assert compare(Shifted(0.0), x, before).same
    assert compare(Shifted(1e-5), x, before).same
    changed = compare(Shifted(0.5), x, before)
    assert not changed.same
    assert str(changed) == "outputs changed by 5.0e-01 (relative)"
    assert compare(Shifted(0.5), x, before, tolerance=0.6).same
    assert not compare(Shifted(1e-5), x, before, tolerance=0.0).same
    failed = compare(Shifted(-1), x, before, tolerance=1e9)
    assert not failed.same
    assert str(failed) == "forward() fails: RuntimeError: mat1 and mat2"


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_an_interrupt_and_a_lack_of_memory_are_no_comparison(error: type[BaseException]) -> None:
    class Stopped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(error):
        compare(Stopped(), torch.ones(1), Remembered([torch.ones(1)]))


def test_what_was_not_finite_is_left_out_and_counted() -> None:
    nan, inf = float("nan"), float("inf")
    found = difference([torch.tensor([1.0, nan, inf, 2.0])], [torch.tensor([1.0, 7.0, 7.0, 3.0])])
    assert found == (1.0, 0.5, 2, 4)


def test_what_becomes_not_finite_is_a_difference() -> None:
    found = difference([torch.tensor([nan := float("nan"), 1.0])], [torch.tensor([nan, nan])])
    assert found[:2] == (float("inf"), float("inf"))


@pytest.mark.parametrize(
    "values", [[], [torch.zeros(0, 4)], [torch.full((2,), float("nan"))]], ids=len
)
def test_nothing_to_compare_is_told_with_what_to_do(values: list[Tensor]) -> None:
    said = nothing_to_compare(Remembered(values))
    assert "hold no finite number" in said
    assert "Pass example inputs on which" in said
    assert nothing_to_compare(Remembered([torch.zeros(1), *values])) == ""


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "little"),
    [
        ([torch.zeros(2, 3)], True),
        ([torch.full((4,), 0.5), torch.zeros(1)], True),
        ([torch.tensor([2.0, NAN, 2.0])], True),
        ([torch.zeros(2, 3), torch.tensor([0.0, 1e-6])], False),
        ([torch.tensor(0.3)], False),  # one number cannot differ from itself
    ],
    ids=["zeros", "each its own", "of what is finite", "another differs", "one number"],
)
def test_constant_outputs_prove_little(values: list[Tensor], little: bool) -> None:
    assert ("constant" in proves_little(Remembered(values))) is little


class Draws(nn.Module):
    """Random in training mode; asks for targets there if it wants some."""

    def __init__(self, drop: float, targets: bool = False) -> None:
        super().__init__()
        self.drop, self.targets = nn.Dropout(drop), targets

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.targets:
            raise ValueError("targets, please")
        return self.drop(x)


def test_training_mode_is_compared_where_it_can_be() -> None:
    x = torch.ones(64)
    plain, random = (remember_training(Draws(p), x) for p in (0.0, 0.5))
    assert plain is not None
    assert random is not None
    assert (plain.exact, random.exact) == (True, False)
    assert remember_training(Draws(0.0, targets=True), x) is None
    assert compare(Draws(0.5), x, random).same  # it runs, and more cannot be asked
    assert not compare(Draws(0.5), x, plain).same
    assert str(compare(Draws(0.5, targets=True), x, random)) == (
        "forward() fails in training mode: ValueError: targets, please"
    )


class Ranked(nn.Module):
    """Sorts, picks and suppresses; a rounding error swaps what is nearly equal."""

    def __init__(self, nudge: float = 0.0) -> None:
        super().__init__()
        self.nudge = nudge

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x + self.nudge * torch.linspace(1, -1, x.numel())
        values, places = x.topk(8)
        return {
            "values": values,
            "carried along": x.flip(0)[places],
            "above": x.flip(0)[x > x.mean()],
            "sorted": x.flip(0)[x.argsort(descending=True)],
            "largest": x.flip(0)[x.max(0)[1]],
        }


def test_choices_of_order_are_kept() -> None:
    x = (
        1
        + 1e-7 * torch.arange(64.0)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    )
    x = torch.cat([x, torch.linspace(0, 2, 9)])
    before = remember(Ranked(), x)
    assert not compare(Ranked(1e-6), x, Remembered(before.values)).same
    found = compare(Ranked(1e-6), x, before)
    assert found.same
    assert found.ordered == 4
    assert not compare(Ranked(0.1), x, before).same
