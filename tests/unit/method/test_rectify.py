"""The self-rectifying figures and rules against their definitions, one structure at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decayprune import Rectify
from decayprune.method.rectify import Statistics, Tournament, c_len, c_rate, observe

FIGURES = st.lists(st.floats(-5, 5).filter(lambda v: abs(v) > 1e-3), min_size=1, max_size=12)


def double(size: int) -> Statistics:
    return Statistics(*(field.double() for field in Statistics.zeros(size)))


def watched(
    resistance: list[float], given: list[float] | None = None, taken: list[float] | None = None
) -> Statistics:
    """Statistics of one structure that was observed so many steps."""
    sums = double(1)
    for k, p in enumerate(resistance):
        sums = observe(
            sums,
            torch.tensor([True]),
            resistance=torch.tensor([p], dtype=torch.float64),
            given=torch.tensor([given[k] if given else 0.0], dtype=torch.float64),
            taken=torch.tensor([taken[k] if taken else 1.0], dtype=torch.float64),
        )
    return sums


@given(p=FIGURES)
def test_c_rate_is_mean_over_rms(p: list[float]) -> None:
    mean, rms = sum(p) / len(p), math.sqrt(sum(v * v for v in p) / len(p))
    assert float(c_rate(watched(p))) == pytest.approx(mean / rms, abs=1e-9)


@given(p=FIGURES, factor=st.floats(0.01, 100))
def test_c_rate_knows_no_scale(p: list[float], factor: float) -> None:
    scaled = [v * factor for v in p]
    assert float(c_rate(watched(scaled))) == pytest.approx(float(c_rate(watched(p))), abs=1e-9)


def test_c_rate_of_constant_resistance_is_one() -> None:
    assert float(c_rate(watched([0.3] * 7))) == pytest.approx(1)
    assert float(c_rate(watched([-0.3] * 7))) == pytest.approx(-1)
    assert float(c_rate(watched([0.3, -0.3]))) == 0


def test_c_len_is_given_over_taken() -> None:
    sums = watched([1.0, 1.0], given=[0.25, 0.5], taken=[1.0, 2.0])
    assert float(c_len(sums)) == 0.25


def test_work_is_resistance_times_what_was_taken() -> None:
    sums = watched([2.0, -1.0, 0.5], taken=[0.5, 0.25, 4.0])
    assert float(sums.work) == 2.0 * 0.5 - 0.25 + 2.0
    assert float(sums.observed) == 3


def test_unseen_structures_have_zeros() -> None:
    sums = Statistics.zeros(3)
    assert c_rate(sums).tolist() == [0, 0, 0]
    assert c_len(sums).tolist() == [0, 0, 0]


def test_observing_touches_only_its_structures() -> None:
    ones = torch.tensor([torch.nan, 1, torch.inf, 1])  # of the others it may be anything
    mask = torch.tensor([False, True, False, True])
    sums = observe(Statistics.zeros(4), mask, resistance=ones, given=ones, taken=ones)
    for field in sums:
        assert field.tolist() == [0, 1, 0, 1]
    assert all(field.tolist() == [0, 0, 0, 1] for field in sums.reset(torch.tensor([1])))
    assert all(field.tolist() == [1, 0] for field in sums.at(torch.tensor([3, 0])))


def sums_of(rate: list[float], length: list[float]) -> Statistics:
    """Statistics whose c_rate and c_len are as given, after two steps each."""
    # mean / rms of (1 + d, 1 - d) is 1 / sqrt(1 + d * d).
    size = len(rate)
    spread = [math.sqrt(1 / r**2 - 1) for r in rate]
    sums = double(size)
    for sign in (1, -1):
        sums = observe(
            sums,
            torch.ones(size, dtype=torch.bool),
            resistance=torch.tensor([1 + sign * d for d in spread], dtype=torch.float64),
            given=torch.tensor(length, dtype=torch.float64),
            taken=torch.ones(size, dtype=torch.float64),
        )
    return sums


class TestThresholds:
    rule = Rectify(rule="thresholds", t_rate=0.5, t_len=0.25, warm_up=0.25)

    def released(
        self, sums: Statistics, progress: list[float], rule: Rectify | None = None
    ) -> list[int]:
        """Positions of all that leave, whatever the target: others take their place."""
        now = torch.tensor(progress)
        order, number = (rule or self.rule).verdict.leaving(sums, now, now, step=9, final=False)
        assert number == order.numel()
        return order.tolist()

    def test_both_have_to_be_passed(self) -> None:
        sums = sums_of([0.6, 0.6, 0.4, 0.4], [0.3, 0.2, 0.3, 0.2])
        assert c_rate(sums).tolist() == pytest.approx([0.6, 0.6, 0.4, 0.4])
        assert self.released(sums, [0.5] * 4) == [0]

    def test_thresholds_themselves_do_not_release(self) -> None:
        sums = watched([1.0], given=[0.25])  # c_len is the threshold exactly
        assert self.released(sums, [0.5]) == []

    def test_nothing_is_released_while_warming_up(self) -> None:
        sums = sums_of([0.9, 0.9, 0.9], [1.0, 1.0, 1.0])
        assert self.released(sums, [0.2, 0.25, 0.3]) == [1, 2]

    def test_nothing_is_released_unseen(self) -> None:
        eager = Rectify(rule="thresholds", t_rate=-1, t_len=-1, warm_up=0)
        assert self.released(Statistics.zeros(1), [0.5], eager) == []


class TestTournament:
    rule = Rectify(rule="tournament", judge_at=0.5)

    def order(
        self, work: list[float], now: list[float], before: list[float], final: bool = False
    ) -> list[int]:
        sums = Statistics.zeros(len(work))._replace(
            work=torch.tensor(work), observed=torch.ones(len(work))
        )
        return self.judged(sums, torch.tensor(now), torch.tensor(before), final=final)

    def judged(self, sums: Statistics, now: Tensor, before: Tensor, *, final: bool) -> list[int]:
        order, number = self.rule.verdict.leaving(sums, now, before, step=9, final=final)
        assert number is None  # the target says how many
        return order.tolist()

    def test_most_work_comes_first(self) -> None:
        assert self.order([1.0, 3.0, -2.0, 3.0], [0.5] * 4, [0.4] * 4) == [1, 3, 0, 2]

    def test_judged_once_on_crossing(self) -> None:
        assert self.order([1.0, 2.0, 3.0], [0.4, 0.5, 0.6], [0.3, 0.4, 0.5]) == [1]

    def test_the_last_call_judges_who_still_waits(self) -> None:
        found = self.order([1.0, 2.0, 3.0], [0.1, 0.5, 0.6], [0.0, 0.4, 0.5], final=True)
        assert found == [1, 0]

    def test_unseen_are_not_judged(self) -> None:
        sums = Statistics.zeros(1)
        assert self.judged(sums, torch.tensor([0.5]), torch.tensor([0.0]), final=True) == []


@pytest.mark.parametrize(
    ("rule", "decay_steps", "share"),
    [
        (Rectify(rule="thresholds"), 10, 0.0),
        (Rectify(extra=0.2), 2, 0.2),  # judged after one step of two
        (Rectify(extra=0.2), 1, 0.0),  # over before anyone looks
        (Rectify(extra=0.2, judge_at=0.75), 3, 0.0),
        (Rectify(extra=0.2, judge_at=0.75), 4, 0.2),
    ],
)
def test_more_is_enrolled_only_where_it_can_come_back(
    rule: Rectify, decay_steps: int, share: float
) -> None:
    assert rule.verdict.extra_share(decay_steps) == share


@pytest.mark.parametrize(
    ("judge_at", "steps_left", "share"),
    [
        (0.5, 0, 0.0),  # nothing is released any more
        (0.5, 1, 0.2),  # in the one step that is left
        (1.0, 9, 0.2),  # before their decay is over, because releases end
        (1.0, 10, 0.0),
    ],
)
def test_the_end_of_releases_judges_early_or_never(
    judge_at: float, steps_left: int, share: float
) -> None:
    assert Tournament(extra=0.2, judge_at=judge_at).extra_share(10, steps_left) == share


@pytest.mark.parametrize(
    ("name", "bad", "limits"),
    [
        ("t_rate", 1.5, "from -1 to 1"),
        ("warm_up", -0.1, "from 0 to 1"),
        ("extra", 2.0, "from 0 to 1"),
        ("judge_at", 1.01, "from 0 to 1"),
        ("cool_down", -1.0, "from 0 to inf"),
        ("t_len", float("nan"), "from -inf to inf"),
    ],
)
def test_values_out_of_range_are_refused(name: str, bad: float, limits: str) -> None:
    with pytest.raises(ValueError, match=f"Rectify.{name} is a number {limits}, found"):
        Rectify(**{name: bad})


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'thresholds' or 'tournament', found 'votes'"):
        Rectify(rule="votes")  # type: ignore[arg-type]
