"""A step that a device records and repeats without Python (``torch.cuda.graph``).

Nothing runs while it is recorded, and no line of Python while it is repeated. So it can be a step
alone at which nothing is decided on the host; which those are is known before, from ages and the
schedule, and the host counts along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from decayprune.session.capture import capturing
from decayprune.session.session import Session
from decayprune.session.step_watch import grad_scale


class Graph(Protocol):
    """What was recorded, such as a ``torch.cuda.CUDAGraph``."""

    def replay(self) -> object:
        """Repeat it."""


class Recording:
    """The steps of a session that a device may record and repeat.

    Args:
        session: The session.
        pauses: Whether surely nothing is selected at a step at which nothing is released.
    """

    def __init__(self, session: Session, pauses: Callable[[int], bool]) -> None:
        self._session, self._pauses = session, pauses
        self._began = False  # in a capture, the step that is being taken

    @property
    def ready(self) -> bool:
        """Whether nothing is decided at the next step, and nothing has to be found out for it."""
        session = self._session
        if session.report is not None:
            return True
        if session.decayer.waiting.unread:
            session.ledger.settle()  # of a graph's steps it is asked later
        step = session.ledger.last + 1
        return session.decayer.steady(step) and self._pauses(step)

    def replay(self, graph: Graph) -> None:
        """Repeat what was recorded last, and count it.

        Args:
            graph: That.

        Raises:
            RuntimeError: It would be another step than the one that is due; none was taken.
        """
        session = self._session
        if session.report is not None:
            graph.replay()
            return
        self._check_ready()
        if not session.decayer.repeatable:
            raise RuntimeError(
                f"{session.name}.replay() repeats the step that was captured last, and none was, "
                "or another was taken since, and a graph does not know what that has changed. "
                f"Capture a step while {session.name}.replayable is True, and anew after every "
                "step without the graph."
            )
        graph.replay()
        session.decayer.repeated(session.ledger.last + 1)
        session.ledger.note([])

    # ---------------------------------------------------------------- the parts of a step

    def observe(self) -> None:
        """Gradients are to be read now."""
        self._enter(begins=True)
        self._session.observe()

    def remember(self, optimizer: torch.optim.Optimizer, *, first: bool) -> None:
        """An optimizer is about to step, the ``first`` of several."""
        decayer = self._session.decayer
        if not self._enter(begins=first and not decayer.reading.observed):
            self._session.remember(optimizer, first=first)
            return
        if getattr(optimizer, "found_inf", None) is not None:
            raise RuntimeError(
                "A graph is captured, and a GradScaler decides on the host whether an optimizer "
                "steps. Capture the forward and the backward pass alone, or train in bfloat16."
            )
        decayer.remember(optimizer, first=first, grad_scale=grad_scale(optimizer))

    def follow(self) -> bool:
        """All optimizers have stepped; whether in a capture, and everything was recorded."""
        session = self._session
        if not self._enter(begins=False):
            return False
        session.anatomy.check()
        session.vigil.check_gradients(
            needed=session.rectify is not None, over=lambda: session.finished
        )
        session.decayer.record()
        session.vigil.followed()
        return True

    def _enter(self, *, begins: bool) -> bool:
        """Whether a part of a step is in a capture, as its other parts have to be."""
        session = self._session
        within = capturing(session.decayer.weights.device)
        if begins:
            self._began = within
        if within != self._began:
            raise RuntimeError(
                "Part of a step is in a captured graph, and part is not: optimizer.step(), "
                f"{session.name}.step(), and {session.name}.observe() if there is one, belong into "
                "it together, or none of them."
            )
        if within:
            self._check_ready(asks=False)
        return within

    def _check_ready(self, *, asks: bool = True) -> None:
        """Raise unless the next step is :attr:`ready`; a device that records cannot be asked."""
        session = self._session
        if (session.decayer.waiting.unread and not asks) or not self.ready:
            raise RuntimeError(
                f"At step {session.ledger.last + 1} the {session.name} has something to decide "
                f"on the host, and a captured graph would repeat what it was before. Ask for "
                f"{session.name}.replayable before each step: while it is False take steps without "
                "a graph, and capture anew afterwards."
            )
