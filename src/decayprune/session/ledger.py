"""What a session has counted, and what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decayprune.method.lifecycle import Event
from decayprune.method.moves import Moves


class Ledger:
    """Steps, steps that did not count, and events in order.

    Attributes:
        steps: Optimizer steps followed.
        waited: Steps that did not count because a gradient was not finite.
        on_event: Told of every event, after the step that made it.
    """

    def __init__(self) -> None:
        self.steps = self.waited = 0
        self.on_event: Callable[[Event], object] | None = None
        self._events: list[Event] = []
        self._unread: list[Moves] = []  # events are made when somebody reads them

    @property
    def events(self) -> list[Event]:
        """What happened, in order."""
        moves, self._unread = self._unread, []
        self._events += _events(moves)
        return self._events

    def note(self, moves: Sequence[Moves]) -> None:
        """A step that counts, and what happened at it; :meth:`tell` afterwards."""
        self.steps += 1
        self._unread += moves

    def tell(self, moves: Sequence[Moves]) -> None:
        """Tell who wants to be told."""
        if self.on_event is not None:
            for event in _events(moves):
                self.on_event(event)

    def wait(self) -> None:
        """A step that does not count."""
        self.waited += 1

    def take_back(self, number: int) -> None:
        """So many of the last steps did not count after all."""
        self.steps, self.waited = self.steps - number, self.waited + number

    def state_dict(self) -> dict[str, Any]:
        """Numbers, and events as lists of their fields."""
        return {
            "steps": self.steps,
            "waited": self.waited,
            "events": [list(vars(event).values()) for event in self.events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.steps, self.waited = int(state["steps"]), int(state["waited"])
        self._unread, self._events = [], [Event(*row) for row in state["events"]]


def _events(moves: Sequence[Moves]) -> list[Event]:
    return [event for move in moves for event in move.events()]
