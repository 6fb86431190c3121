"""Turns what goes wrong into one message that a stranger can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from decayprune.app.run.blame import on_purpose

# What the library and the command usually raise; anything else gets its type as well.
_EXPECTED = (ValueError, FileNotFoundError, NotADirectoryError)


def describe(error: BaseException) -> str:
    """One message for an error, with a hint where the error itself gives none."""
    if isinstance(error, _EXPECTED) or on_purpose(error):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"{error.strerror or error}{where}. Files that were there before are unharmed; free "
            "some space or name another folder, and go on with --resume if the run had begun."
        )
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. If it belongs to the command: pip install 'decayprune[cli]'."
    return f"{type(error).__name__}: {error}\nRun the command again with --traceback to see where."


@contextmanager
def readable(traceback: bool) -> Iterator[None]:
    """Show an error as one message and leave with code 2, unless a traceback is wanted."""
    try:
        yield
    except (typer.Exit, typer.Abort, KeyboardInterrupt):
        raise
    except Exception as error:
        if traceback:
            raise
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(Text.assemble(("Error: ", "bold red"), describe(error)))
        raise typer.Exit(2) from None
