"""Errors of code that the user handed in by an option: which option, where, and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).parents[2]


@contextmanager
def blamed(option: str, given: str) -> Iterator[None]:
    """Tell an error of the user's own code by the option that brought it.

    Args:
        option: Such as ``--loss``.
        given: What was given to it; empty where the code is ours, whose errors stay as they are.

    Raises:
        ValueError: The code raised something; the message says what, where, and what to do.
    """
    try:
        yield
    except Exception as error:
        if not given or on_purpose(error):
            raise
        raise ValueError(
            f"{option} {given} raised {type(error).__name__}: {_said(error)}{_place(error)}. "
            "Mend it there; --traceback shows the whole way."
        ) from error


def on_purpose(error: BaseException) -> bool:
    """Whether the package raised it itself, with a message of its own: it needs no traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    ours = bool(last) and Path(last[0].filename).is_relative_to(_PACKAGE)
    return ours and (last[0].line or "").startswith("raise ")


def _said(error: Exception) -> str:
    """Its message; of one that a worker process passed on, the last line."""
    text = str(error).strip()
    if text.startswith("Caught ") and "\n" in text:
        return text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    return text


def _place(error: Exception) -> str:
    """The deepest line in a file of the user's: one below the working directory."""
    here = Path.cwd()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        installed = "site-packages" in path.parts or path.is_relative_to(_PACKAGE)
        if path.is_relative_to(here) and not installed:
            return f" ({path.relative_to(here)}, line {frame.lineno})"
    return ""
