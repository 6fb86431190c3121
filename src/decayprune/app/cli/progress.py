"""Progress of a run: bars in a terminal, a line now and then in a pipe or a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from decayprune.app.run.run import Watch

_TITLES = {
    "train": "training the dense model",
    "accuracy before": "judging the dense model",
    "prune": "decaying and pruning",
    "cut": "cutting and checking",
    "finetune": "fine-tuning the compact model",
    "accuracy after": "judging the compact model",
    "measure and check": "measuring speed, saving, reading back",
}
_WIDTH = max(map(len, _TITLES.values()))
_LINES = 5  # per phase, where there are no bars
_SECONDS = 30.0  # and at least this often


class Bars:
    """One bar per phase, the finished ones above the running one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def phase(self, name: str, total: int, done: int) -> None:
        """Fill the bar before and begin a new one."""
        self.close()
        title = f"{_TITLES.get(name, name):{_WIDTH}}"
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def tick(self, note: str = "") -> None:
        """Move the bar; show a new note if there is one."""
        if self._task is None:
            return
        self._progress.advance(self._task)
        if note:
            self._progress.update(self._task, note=note)

    def note(self, text: str) -> None:
        """Say something above the bars."""
        self._progress.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Fill the last bar: a phase may end before its longest possible time."""
        if self._task is not None:
            task = self._progress.tasks[self._task]
            self._progress.update(self._task, total=task.completed, note=task.fields["note"])


class Lines:
    """A few plain lines per phase, free of control characters."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title, self._total, self._done, self._note = "", 0, 0, ""
        self._said = time.monotonic()

    def phase(self, name: str, total: int, done: int) -> None:
        """Begin a new part."""
        self.close()
        self._title, self._total, self._done = _TITLES.get(name, name), total, done
        self._note, self._said = "", time.monotonic()

    def tick(self, note: str = "") -> None:
        """Say something at every fifth of the way, or when it has been quiet for long."""
        self._done += 1
        self._note = note or self._note
        fifth = self._total >= 20 and self._done % max(1, self._total // _LINES) == 0
        if (fifth and self._done < self._total) or time.monotonic() - self._said > _SECONDS:
            self._say(f"{self._done}/{self._total}")

    def note(self, text: str) -> None:
        """Say something on a line of its own."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Say that the part is over."""
        if self._title:
            self._say("done")
        self._title = ""

    def _say(self, state: str) -> None:
        note = f"  {self._note}" if self._note else ""
        self._console.print(f"{self._title}: {state}{note}", highlight=False, soft_wrap=True)
        self._said = time.monotonic()


@contextmanager
def shown(console: Console) -> Iterator[Watch]:
    """What suits the console: bars, or lines."""
    if not console.is_terminal:
        lines = Lines(console)
        yield lines
        lines.close()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console) as progress:
        bars = Bars(progress)
        yield bars
        bars.close()
