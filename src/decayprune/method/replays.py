"""A step that a device has recorded and repeats: which it is, and how often it counted."""

from __future__ import annotations

import logging
import operator

from decayprune.method.lifecycle import LifecycleState
from decayprune.method.members import Members

logger = logging.getLogger("decayprune")


class Replays:
    """Repetitions of one recorded step, of which the host knows only how many there were."""

    def __init__(self) -> None:
        self._number, self._unread = 0, False
        self._recorded: tuple[object, ...] = ()

    def keep(self, *parts: object) -> None:
        """A step was recorded that reads and writes these, whose memory is held for it."""
        self._recorded, self._unread = parts, True

    def fits(self, *parts: object) -> bool:
        """Whether the recorded step is about the very same, so that it can be repeated."""
        return len(parts) == len(self._recorded) and all(map(operator.is_, parts, self._recorded))

    def add(self, members: Members) -> None:
        """It has been repeated; as far as the host knows, it counted."""
        self._number, self._unread = self._number + 1, True
        members.ages[0] += 1

    def missed(self, state: LifecycleState, members: Members) -> int:
        """How many did not count, because something was not finite; the device is waited for.

        Raises:
            RuntimeError: There were more than it was told of. It is said once.
        """
        (number, unread), self._number, self._unread = (self._number, self._unread), 0, False
        if not unread or not members.ids.numel():
            return 0
        # All that decay grow older together, or wait together.
        missed = int(members.ages[0, 0]) - int(state.age[int(members.ids[0])])
        if missed < 0:
            members.ages[0] -= missed
            raise RuntimeError(
                f"{-missed} steps were repeated with graph.replay(), where nobody counted them, "
                "and what was to be decided in between was not. Repeat them with replay(graph) of "
                "the pruner, and go on from the last checkpoint."
            )
        if missed:
            logger.warning(
                "%d of the last %d steps, which were repeated from a graph, do not count: a "
                "gradient or weight of a decaying structure was not finite",
                missed,
                number,
            )
        return missed
