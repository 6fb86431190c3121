"""Counting, and events that are made when somebody reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from decayprune.method.lifecycle import Event
from decayprune.session.ledger import Ledger


class Move:
    """Counts how often its events were made."""

    def __init__(self, *structures: int) -> None:
        self.structures, self.made = structures, 0

    def events(self) -> list[Event]:
        self.made += 1
        return [Event(1, "decay", s, "layer", s, None, None, None) for s in self.structures]


def noted(*moves: Any) -> Ledger:
    ledger = Ledger()
    for move in moves:
        ledger.note([move])
    return ledger


def test_events_are_made_once_and_when_read() -> None:
    moves = [Move(1, 2), Move(3)]
    ledger = noted(*moves)
    assert [move.made for move in moves] == [0, 0]
    assert [event.structure for event in ledger.events] == [1, 2, 3]
    assert len(ledger.events) == 3
    assert [move.made for move in moves] == [1, 1]


def test_steps_that_count_and_steps_that_do_not() -> None:
    missed = [0, 0, 1]
    ledger = Ledger(late=lambda: missed.pop() if missed else 0)
    ledger.note([])
    ledger.note([])
    ledger.wait()
    assert ledger.last == 2  # nobody has asked yet
    assert (ledger.steps, ledger.waited, ledger.last) == (1, 2, 1)
    assert (ledger.steps, ledger.waited) == (1, 2)


def test_who_wants_to_be_told_is() -> None:
    told: list[Event] = []
    listener: Callable[[Event], object] = told.append
    ledger, move = noted(), Move(4)
    ledger.tell([move])  # type: ignore[list-item]
    assert move.made == 0
    ledger.on_event = listener
    ledger.tell([move])  # type: ignore[list-item]
    assert [event.structure for event in told] == [4]


def test_saved_and_taken_up() -> None:
    ledger, other = noted(Move(1), Move(2)), noted(Move(9))
    ledger.wait()
    other.load_state_dict(ledger.state_dict())
    assert (other.steps, other.waited) == (2, 1)
    assert other.events == ledger.events
