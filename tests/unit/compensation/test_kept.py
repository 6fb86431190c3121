"""Batches wait for their rounds, and are let go of after the last one."""

from __future__ import annotations

import torch

from decayprune.compensation.kept import KeptBatches


class Clock:
    step = 1


def waiting() -> tuple[KeptBatches, Clock]:
    clock = Clock()
    batches = [torch.ones(2), torch.zeros(2)]
    return KeptBatches(batches, rounds={6, 4}, step=lambda: clock.step), clock


def test_they_are_due_at_every_round_until_it_has_learned_and_kept_until_the_last_one() -> None:
    found, clock = waiting()
    due = []
    for clock.step in range(1, 6):
        due.append(found.due())
    assert due == [False, False, False, True, True]
    found.learned()
    assert not found.due()
    assert [float(batch[0]) for batch in found.kept] == [1, 0]
    clock.step = 6
    assert found.due()
    found.learned()
    assert not found.due()
    assert not found.kept


def test_rounds_that_were_missed_are_learned_for_once() -> None:
    found, clock = waiting()
    clock.step = 7
    found.learned()
    assert not found.due()


def test_closed_they_are_never_due() -> None:
    found, clock = waiting()
    found.close()
    clock.step = 6
    assert not found.due()


def test_of_more_than_the_limit_the_last_are_kept() -> None:
    batches = [torch.full((2,), float(value)) for value in range(3)]
    found = KeptBatches(batches, rounds={1}, step=lambda: 1, limit=2)
    assert [float(batch[0]) for batch in found.kept] == [1, 2]


def test_nothing_that_passes_is_kept() -> None:
    found, _ = waiting()
    assert not any(found.near(step) for step in range(6))


def test_a_state_goes_on_elsewhere_and_is_a_copy() -> None:
    found, clock = waiting()
    clock.step = 4
    found.learned()
    other = KeptBatches([], rounds=(), step=lambda: 6)
    assert not other.due()
    other.load_state_dict(found.state_dict())
    found.close()
    assert other.due()
    assert len(other.kept) == 2
    other.load_state_dict(found.state_dict())
    assert not other.due()
