"""Steps that do not count, because something was not finite: found at once, or a step later."""

from __future__ import annotations

import logging

from torch import Tensor

from decayprune.method.flag import Flag

logger = logging.getLogger("decayprune")


class Waiting:
    """Whether the decay waits until all is finite, and says so once for a stretch."""

    def __init__(self) -> None:
        self._waits = False
        self._unread: tuple[Flag, int] | None = None

    def forget(self) -> None:
        """Whether the last step was finite is of no interest any more."""
        self._unread = None

    @property
    def unread(self) -> bool:
        """Whether the last step is still to be told of."""
        return self._unread is not None

    def tell(self, step: int, finite: bool) -> bool:
        """Whether a step counts.

        Args:
            step: Its number.
            finite: Whether all was finite.
        """
        if not finite and not self._waits:
            logger.warning(
                "step %d: a gradient or weight of a decaying structure is not finite; the decay "
                "waits until all are",
                step,
            )
        elif self._waits and finite:
            logger.warning("step %d: gradients and weights are finite; the decay goes on", step)
        self._waits = not finite
        return finite

    def tell_later(self, step: int, finite: Tensor) -> None:
        """The same, of what a device computes: it is read when :meth:`counted` asks.

        Args:
            step: Its number.
            finite: Shape ``()``, bool.
        """
        self._unread = Flag(finite), step

    def counted(self) -> bool:
        """Whether the step that was to be told of later counts; True if there is none."""
        if self._unread is None:
            return True
        (unread, step), self._unread = self._unread, None
        return self.tell(step, unread.read())
