"""The tournament without rounds: who is among the costliest so far."""

from __future__ import annotations

import torch

from decayprune.hosts.otov2.stream import Stream
from decayprune.method.rectify import Statistics, Tournament


def judged(stream: Stream, work: list[float], step: int) -> tuple[list[int], int | None]:
    """Structures that are judged together, the costliest first, and how many leave."""
    sums = Statistics.zeros(len(work))._replace(
        work=torch.tensor(work), observed=torch.ones(len(work))
    )
    now, before = torch.full((len(work),), 0.5), torch.full((len(work),), 0.25)
    order, number = stream.leaving(sums, now, before, step=step, final=False)
    return order.tolist(), number


def test_a_third_of_all_so_far_is_released() -> None:
    stream = Stream(Tournament(extra=0.5, judge_at=0.5), stop_step=9)
    assert judged(stream, [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 5) == ([0, 1, 2, 3, 4, 5], 2)
    assert judged(stream, [0.3, 0.4, 0.5], 6) == ([2, 1, 0], 0)  # beside those before
    assert judged(stream, [8.0, 9.0, 0.1], 7) == ([1, 0, 2], 2)
    assert len(stream.judged) == 12


def test_after_the_stop_step_the_target_decides() -> None:
    stream = Stream(Tournament(extra=0.5, judge_at=0.5), stop_step=9)
    assert judged(stream, [1.0], 9) == ([0], 0)
    assert judged(stream, [2.0, 3.0], 10) == ([1, 0], None)
    assert stream.judged == [1.0]


def test_nobody_judged_changes_nothing() -> None:
    stream = Stream(Tournament(extra=0.5, judge_at=0.9), stop_step=9)
    assert judged(stream, [1.0, 2.0], 5) == ([], 0)
    assert stream.extra_share(10) == 0.5
    assert stream.extra_share(1) == 0.0
