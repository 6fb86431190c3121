"""Report: a run folder, read and checked.

The event log, the history and the norms are written line by line while the run goes on, the final
figures last of all: a folder without ``report.json`` is a run that has not finished, and it still
makes a report. A run that was killed may have left half a line at the end of a log, which is passed
over; every other fault is an error.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from decayprune.app.report import text
from decayprune.app.report.records import (
    EVENTS,
    PHASES,
    EventRow,
    Moment,
    Norm,
    Summary,
    Trace,
    decode,
    mismatch,
    parse,
)

FORMAT = "decayprune-report"
VERSION = 1
T = TypeVar("T", EventRow, Moment, Norm)


@dataclass(frozen=True)
class Report:
    """What a run did and achieved.

    Attributes:
        summary: The final figures; None while the run has not finished.
        events: Every decay, release and prune, in the order of steps.
        history: Loss, learning rate and accuracy over steps.
        norms: Sampled lengths of decaying structures.
    """

    summary: Summary | None
    events: tuple[EventRow, ...]
    history: tuple[Moment, ...]
    norms: tuple[Norm, ...]

    @classmethod
    def read(cls, folder: str | Path) -> Report:
        """Read the folder that ``decayprune prune --out`` wrote.

        Args:
            folder: The run folder; the run need not have finished.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: The folder holds no run, or one of its files is damaged or foreign.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Expected the folder of a run, found no folder {str(folder)!r}. Give the --out "
                "folder of `decayprune prune`."
            )
        names = ("report.json", "events.jsonl", "history.jsonl", "norms.jsonl")
        # A run that has only just begun has written its settings and nothing else.
        if not any((folder / name).is_file() for name in (*names, "settings.json")):
            raise ValueError(
                f"Expected the folder of a run with {', '.join(names)}; found none of these in "
                f"{folder}. Give the --out folder of `decayprune prune`."
            )
        report = cls(
            summary=_read_summary(folder / names[0]),
            events=_read_lines(folder / names[1], EventRow),
            history=_read_lines(folder / names[2], Moment),
            norms=_read_lines(folder / names[3], Norm),
        )
        _check_steps(report, folder)
        return report

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.summary is not None

    @property
    def trace(self) -> Trace:
        """The last optimizer step that left a trace, its phase, and how many events there were."""
        last = [items[-1].step for items in (self.history, self.events) if items]
        found = Counter(event.kind for event in self.events)
        return Trace(
            last_step=max(last, default=0),
            phase=self.history[-1].phase if self.history else None,
            counts={kind: found[kind] for kind in EVENTS},
        )

    def __str__(self) -> str:
        return text.table(self.summary, self.trace)

    def to_json(self) -> str:
        """Return the final figures as JSON: the contents of ``report.json``.

        An unfinished run has only ``finished: false``, its last step and what was counted so far.
        """
        head: dict[str, object] = {"format": FORMAT, "version": VERSION}
        if self.summary is not None:
            return json.dumps({**head, **asdict(self.summary)}, indent=2)
        trace = self.trace
        counts = {
            "finished": False,
            "last_step": trace.last_step,
            "decayed": trace.counts["decay"],
            "released": trace.counts["release"],
            "pruned": trace.counts["prune"],
        }
        return json.dumps({**head, **counts}, indent=2)


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise mismatch(where, "UTF-8 text", content[:40]) from None


def _read_summary(path: Path) -> Summary | None:
    if not path.is_file():
        return None
    found = decode(_decoded(path.read_bytes(), str(path)), str(path))
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise mismatch(str(path), f"a JSON object with 'format': {FORMAT!r}", found)
    if found.get("version") != VERSION:
        raise ValueError(
            f"{path}: expected version {VERSION} of the report, found {found.get('version')!r};"
            " read it with the release of decayprune that wrote it"
        )
    return parse(Summary, found, str(path))


def _read_lines(path: Path, record: type[T]) -> tuple[T, ...]:
    if not path.is_file():
        return ()
    *lines, tail = path.read_bytes().split(b"\n")
    items = []
    for number, line in enumerate([*lines, tail], start=1):
        where = f"{path}, line {number}"
        if number > len(lines) and _is_cut_short(line):
            break
        if line.strip():
            items.append(parse(record, decode(_decoded(line, where), where), where))
    return tuple(sorted(items, key=lambda item: item.step))


def _is_cut_short(tail: bytes) -> bool:
    """Whether a kill or a full disk ended the line: a resumed run writes it again."""
    return tail.startswith(b"{") and not tail.rstrip().endswith(b"}")


def _check_steps(report: Report, folder: Path) -> None:
    """Refuse logs that count their steps from different origins: every plot would be wrong."""
    ends = {phase: [m.step for m in report.history if m.phase == phase] for phase in PHASES}
    for i, phase in enumerate(PHASES):
        later = [step for other in PHASES[i + 1 :] for step in ends[other]]
        if ends[phase] and later and min(later) < ends[phase][-1]:
            raise mismatch(
                str(folder / "history.jsonl"),
                f"steps counted over the whole run (phase {phase!r} ends at {ends[phase][-1]})",
                f"a later phase at step {min(later)}",
            )
    if ends["train"] and report.events and report.events[0].step < ends["train"][-1]:
        raise mismatch(
            str(folder / "events.jsonl"),
            f"steps counted over the whole run (pruning starts after step {ends['train'][-1]})",
            f"an event at step {report.events[0].step}",
        )
