"""The HTML page: one file that shows a run, needs no network, and can be mailed around.

Takes a :class:`Report` and draws it through the templates beside this file: inline SVG, coloured by
CSS variables so that it follows the reader's light or dark setting. Every text of the run goes
through the template engine's escaping, and the page forbids itself scripts and requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from decayprune.app.report import plots, text, timeline
from decayprune.app.report.records import RefusalRow, Summary, Width
from decayprune.app.report.run import Report
from decayprune.checkpoint.atomic import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

_LONGEST_LIST = 300


def write_html(report: Report, path: str | Path) -> None:
    """Write a report as one self-contained HTML file.

    The file is written beside its place and renamed, so that a full disk leaves the old one whole.

    Args:
        report: What to show; unfinished runs show what there is.
        path: The file to write; its folder must exist.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
        OSError: The file cannot be written there.
    """
    path = Path(path)
    page = render(report)
    try:
        write_atomically({path: lambda to: to.write_bytes(page.encode())})
    except OSError as error:
        raise OSError(
            error.errno,
            f"expected a folder that takes the report, found: {error.strerror}; give another path",
            str(path),
        ) from error


def render(report: Report) -> str:
    """Return the page as text.

    Args:
        report: What to show.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
    """
    summary = report.summary
    return (
        _environment()
        .get_template("page.html")
        .render(
            verdict=text.typeset(text.verdict(summary, report.trace)),
            counts=report.trace.counts,
            summary=summary,
            rows=text.rows(summary) if summary else [],
            removal=text.removal(summary) if summary else "",
            training=plots.training(report),
            norms=plots.norms(report),
            timeline=timeline.timeline(report),
            gain=text.gain(summary) if summary else "",
            releases=_releases(report)[:_LONGEST_LIST],
            more_releases=max(0, report.trace.counts["release"] - _LONGEST_LIST),
            latency=_latency(summary) if summary else None,
            widths=summary.widths[:_LONGEST_LIST] if summary else (),
            widest=_widest(summary.widths) if summary else 1,
            refusals=summary.refusals[:_LONGEST_LIST] if summary else (),
            more_widths=_left_out(summary.widths) if summary else 0,
            more_refusals=_left_out(summary.refusals) if summary else 0,
        )
    )


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the HTML report needs jinja2, which is not installed: pip install 'decayprune[cli]'"
        ) from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=text.figure, typeset=text.typeset)
    return environment


def _latency(summary: Summary) -> dict[str, float | str]:
    """Measured latency beside the ideal one: the time before, times the share of MACs left."""
    before, after = summary.latency_before_ms, summary.latency_after_ms
    ideal = before * summary.macs_after / summary.macs_before
    return {
        "before": before,
        "after": after,
        "ideal": ideal,
        "longest": max(before, after),
        "reached": f"{ideal / after:.2f}",
        "speed": text.typeset(text.times(before / after)),
        "ideal_speed": text.typeset(text.times(before / ideal)),
    }


class Release(NamedTuple):
    """One line of the table of releases."""

    structure: str
    step: int
    lasted: int
    reason: str
    c_rate: float | None
    c_len: float | None
    work: float | None


def _releases(report: Report) -> list[Release]:
    """Every release, how long the decay had lasted, and how training resisted it."""
    begun: dict[int, int] = {}
    found = []
    for event in report.events:
        if event.kind == "decay":
            begun[event.structure] = event.step
        elif event.kind == "release":
            lasted = event.step - begun.get(event.structure, event.step)
            figures = (event.c_rate, event.c_len, event.work)
            name = f"{event.layer} #{event.index}"
            found.append(Release(name, event.step, lasted, text.reason(event), *figures))
    return found


def _widest(widths: tuple[Width, ...]) -> int:
    return max((max(width.before, width.after) for width in widths), default=0) or 1


def _left_out(items: tuple[Width, ...] | tuple[RefusalRow, ...]) -> int:
    return max(0, len(items) - _LONGEST_LIST)
