"""What a session has counted, and what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decayprune.method.lifecycle import Event
from decayprune.method.moves import Moves
from decayprune.session.agreement import Agreement


class Ledger:
    """Steps, steps that did not count, and events in order.

    Args:
        agreement: Compares what happened with what did on other ranks; None: there are none.
        late: See below.

    Attributes:
        late: How many of the steps before did not count after all, told once. It is asked where
            somebody reads a number, for a device may have to be waited for.
        last: Number of the last step, by what is known without asking.
        on_event: Told of every event, after the step that made it.
    """

    def __init__(
        self, agreement: Agreement | None = None, late: Callable[[], int] = lambda: 0
    ) -> None:
        self._agreement, self.late = agreement, late
        self.last = self._waited = 0
        self.on_event: Callable[[Event], object] | None = None
        self._events: list[Event] = []
        self._unread: list[Moves] = []  # events are made when somebody reads them

    def settle(self) -> None:
        """Ask whether the steps before have counted; those that have not are taken back."""
        missed = self.late()
        self.last, self._waited = self.last - missed, self._waited + missed

    @property
    def steps(self) -> int:
        """Optimizer steps followed."""
        self.settle()
        return self.last

    @property
    def waited(self) -> int:
        """Steps that did not count because a gradient was not finite."""
        self.settle()
        return self._waited

    @property
    def events(self) -> list[Event]:
        """What happened, in order; nothing did at a step that turns out late not to count."""
        moves, self._unread = self._unread, []
        self._events += _events(moves)
        return self._events

    def note(self, moves: Sequence[Moves]) -> None:
        """A step that counts, and what happened at it; :meth:`tell` afterwards.

        Raises:
            RuntimeError: Another rank has decided something else.
        """
        self.last += 1
        self._unread += moves
        if self._agreement is not None:
            self._agreement.note(self.last, moves)

    def tell(self, moves: Sequence[Moves]) -> None:
        """Tell who wants to be told."""
        if self.on_event is not None:
            for event in _events(moves):
                self.on_event(event)

    def wait(self) -> None:
        """A step that does not count."""
        self._waited += 1

    def state_dict(self) -> dict[str, Any]:
        """Numbers, and events as lists of their fields."""
        return {
            "steps": self.steps,
            "waited": self.waited,
            "events": [list(vars(event).values()) for event in self.events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.last, self._waited = int(state["steps"]), int(state["waited"])
        self._unread, self._events = [], [Event(*row) for row in state["events"]]


def _events(moves: Sequence[Moves]) -> list[Event]:
    return [event for move in moves for event in move.events()]
