"""Batches that were handed over wait for their step, and are let go of after it."""

from __future__ import annotations

import torch

from decayprune.compensation.given import GivenBatches


class Clock:
    step = 1


def waiting() -> tuple[GivenBatches, Clock]:
    clock = Clock()
    return GivenBatches([torch.ones(2), torch.zeros(2)], first=4, step=lambda: clock.step), clock


def test_they_are_due_at_their_step_until_they_are_let_go_of() -> None:
    found, clock = waiting()
    due = []
    for clock.step in range(1, 6):
        due.append(found.due())
    assert due == [False, False, False, True, True]
    assert [float(batch[0]) for batch in found.kept] == [1, 0]
    found.close()
    assert not found.due()


def test_nothing_that_passes_is_kept() -> None:
    found, _ = waiting()
    assert not any(found.near(step) for step in range(6))


def test_a_state_goes_on_elsewhere_and_is_a_copy() -> None:
    found, _ = waiting()
    other = GivenBatches([], first=4, step=lambda: 4)
    assert not other.due()
    other.load_state_dict(found.state_dict())
    found.close()
    assert other.due()
    assert len(other.kept) == 2
    other.load_state_dict(found.state_dict())
    assert not other.due()
