"""Figures in words: the verdict, the text table, and how a number is written.

The page and the terminal say the same things in the same words, so both take them from here. Every
ratio names its direction, and a run that became slower or missed its budget is told so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from decayprune.app.report.records import EventRow, Summary, Trace

_NAMED_SHARES = (
    (0.25, "A quarter of"),
    (1 / 3, "A third of"),
    (0.5, "Half"),
    (2 / 3, "Two thirds of"),
    (0.75, "Three quarters of"),
)


class Row(NamedTuple):
    """One line of the table: what, before, after, and how they compare."""

    name: str
    before: str
    after: str
    change: str


def percent(fraction: float, digits: int = 1) -> str:
    """Write a fraction as a percentage.

    >>> percent(0.4983)
    '49.8 %'
    """
    return f"{100 * fraction:.{digits}f} %"


def amount(number: float) -> str:
    """Write a count in three significant digits with its SI prefix.

    >>> amount(999), amount(1_234_567), amount(4_100_000_000)
    ('999', '1.23 M', '4.10 G')
    """
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            value = number / scale
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {prefix}"
    return f"{number:.0f}"


def times(ratio: float) -> str:
    """Write a ratio as a factor, with more digits where it is close to one."""
    return f"{ratio:.2f}x" if ratio < 1.2 else f"{ratio:.1f}x"


def score(metric: str, value: float, digits: int = 1) -> str:
    """Write what a model was judged by: an accuracy as a percentage, anything else as it is.

    >>> score("accuracy", 0.972), score("loss", 0.31)
    ('97.2 %', '0.31')
    """
    return percent(value, digits) if metric == "accuracy" else figure(value)


def gain(summary: Summary) -> str:
    """Write by how much the figure that the model was judged by has changed."""
    change = summary.accuracy_after - summary.accuracy_before
    return f"{100 * change:+.2f} points" if summary.metric == "accuracy" else f"{change:+.3g}"


def figure(value: float | None) -> str:
    """Write a statistic in three significant digits, or a dash where there is none."""
    return "\u2013" if value is None else f"{value:.3g}"


def typeset(plain: str) -> str:
    r"""Give words that fit any terminal the signs of a printed page.

    >>> typeset("1.7x faster, 97.2 % -> 97.0 %, -0.2 points") == (
    ...     "1.7\u00d7 faster, 97.2\u00a0% \u2192 97.0\u00a0%, \u22120.2 points"
    ... )
    True
    """
    signs = plain.replace("->", "\u2192").replace(" %", "\u00a0%")
    return re.sub(r"(?<=\d)x\b", "\u00d7", re.sub(r"(?<!\S)-(?=\d)", "\u2212", signs))


def span(first: int, last: int) -> str:
    """Write one step, or the first and last of several.

    >>> span(1200, 1240)
    'steps 1,200 to 1,240'
    """
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def evidence(event: EventRow) -> str:
    """Write the three figures of self-rectifying that an event was logged with."""
    return f"C_rate {figure(event.c_rate)}, C_len {figure(event.c_len)}, W {figure(event.work)}"


def reason(event: EventRow) -> str:
    """Say in words how training resisted the decay of a structure that was released.

    >>> reason(EventRow(9, "release", 0, "conv", 0, c_rate=0.8, c_len=0.25))
    'training pulled steadily against the decay and gave back 25 % of the length it took'
    """
    rate = event.c_rate or 0.0
    how = "steadily" if rate >= 0.5 else "at times" if rate > 0 else "hardly"
    words = f"training pulled {how} against the decay"
    if event.c_len is not None and event.c_len > 0:
        words += f" and gave back {percent(event.c_len, 0)} of the length it took"
    return words


def verdict(summary: Summary | None, trace: Trace) -> str:
    """Say in one sentence what the run achieved; without a summary, how far it came."""
    if summary is None:
        return _unfinished(trace)
    share = summary.macs_after / summary.macs_before
    named = [words for value, words in _NAMED_SHARES if abs(share - value) <= 0.02]
    if share > 0.995:
        compute = f"No compute saved ({percent(share)} of the MACs)"
    elif named:
        compute = f"{named[0]} the compute ({percent(share)} of the MACs)"
    else:
        compute = f"{percent(share)} of the compute (MACs)"
    before, after = (
        score(summary.metric, value) for value in (summary.accuracy_before, summary.accuracy_after)
    )
    missed = "".join(
        f"; the budget of {percent(limit)} of the {name} was missed"
        for name, limit, found in _budgets(summary)
        if found > limit + 0.01
    )
    figures = f"{compute}, {_speed(summary)}, {summary.metric} {before} -> {after}"
    return f"{figures}{missed}{_advice(summary)}"


def _unfinished(trace: Trace) -> str:
    phase = f", phase {trace.phase!r}" if trace.phase is not None else ""
    return f"Unfinished: the last trace of the run is step {trace.last_step:,}{phase}"


def _budgets(summary: Summary) -> list[tuple[str, float, float]]:
    reached = {
        "macs": ("MACs", summary.macs_after / summary.macs_before),
        "params": ("parameters", summary.params_after / summary.params_before),
    }
    return [(reached[k][0], v, reached[k][1]) for k, v in summary.budget.items() if k in reached]


def _speed(summary: Summary) -> str:
    ratio = summary.latency_before_ms / summary.latency_after_ms
    if ratio >= 1.05:
        return f"{times(ratio)} faster here"
    if ratio <= 0.95:
        return f"{times(1 / ratio)} slower here"
    return "no faster here"


def _advice(summary: Summary) -> str:
    """What to do about a model that did not become faster."""
    if summary.latency_before_ms / summary.latency_after_ms >= 1.05:
        return ""
    return "; for speed, bound the time itself with --latency-budget on an idle machine"


def rows(summary: Summary) -> list[Row]:
    """Return the table of a finished run: accuracy, MACs, parameters, latency."""
    macs = summary.macs_after / summary.macs_before
    params = summary.params_after / summary.params_before
    ratio = summary.latency_before_ms / summary.latency_after_ms
    form = ", compiled" if summary.latency_form == "compiled" else ""
    return [
        Row(
            summary.metric,
            score(summary.metric, summary.accuracy_before, 2),
            score(summary.metric, summary.accuracy_after, 2),
            gain(summary),
        ),
        Row(
            "MACs", amount(summary.macs_before), amount(summary.macs_after), f"{percent(macs)} left"
        ),
        Row(
            "parameters",
            amount(summary.params_before),
            amount(summary.params_after),
            f"{percent(params)} left",
        ),
        Row(
            f"latency (batch {summary.batch_size_latency}{form})",
            f"{figure(summary.latency_before_ms)} ms",
            f"{figure(summary.latency_after_ms)} ms",
            f"{times(ratio)} as fast",
        ),
    ]


def table(summary: Summary | None, trace: Trace) -> str:
    """Return a run as text of at most 100 columns for a terminal."""
    said = verdict(summary, trace)
    if summary is None:
        return f"{said}\n\n{_so_far(trace.counts)}"
    head = Row("", "before", "after", "")
    found = [head, *rows(summary)]
    width = max(22, *(len(row.name) for row in found))
    lines = [
        f"{row.name:<{width}}{row.before:>12}{row.after:>12}   {row.change}".rstrip()
        for row in found
    ]
    counts = (
        f"structures: {summary.decayed} decayed, {summary.released} released,"
        f" {summary.removed} removed"
    )
    judged = f"{summary.metric} was measured on {summary.judged_on}"
    return "\n".join([said, "", *lines, "", judged, counts, removal(summary)])


def _so_far(counts: Mapping[str, int]) -> str:
    return (
        f"structures so far: {counts['decay']} decayed, {counts['release']} released,"
        f" {counts['prune']} pruned"
    )


def removal(summary: Summary) -> str:
    """Say by how much cutting moved the outputs away from those of the zeroed model."""
    return (
        f"cutting changed the outputs by at most {figure(summary.max_abs_error)}"
        f" (relative {figure(summary.max_rel_error)})"
    )
