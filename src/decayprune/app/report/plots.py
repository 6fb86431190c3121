"""The curves: training over the whole run, and the lengths of structures while they decay.

Pure functions from a report to coordinates; the templates only draw them. Everything is binned or
thinned to a bounded size: the page of a long run is no larger.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from decayprune.app.report.axes import (
    WIDTH,
    Axis,
    Cell,
    Tick,
    polyline,
    step_axis,
    step_ticks,
    ticks,
)
from decayprune.app.report.records import EventRow, Moment, Norm
from decayprune.app.report.run import Report
from decayprune.app.report.text import evidence, figure, percent, score, span

_BINS = 240  # of the training curves: about one for four pixels
_TRAJECTORIES = 80
_MACS = "MACs left, commitments counted"
_PHASE_NAMES = {"train": "train", "prune": "prune", "finetune": "fine-tune"}


@dataclass(frozen=True)
class Panel:
    """One curve over steps: its mean line, the band from lowest to highest, single points.

    ``reference`` is a dashed line across it, and ``mark`` the words that stand at it.
    """

    name: str
    ticks: list[Tick]
    line: str
    band: str
    dots: str
    reference: float | None
    mark: str = ""


@dataclass(frozen=True)
class Training:
    """Curves over the whole run, on one axis of steps."""

    ticks: list[Tick]
    phases: list[Cell]
    rounds: list[float]
    panels: list[Panel]
    cells: list[Cell]


@dataclass(frozen=True)
class Trajectory:
    """One structure's length over steps, where it ends, and how its decay ended."""

    line: str
    last: str
    outcome: str
    title: str


@dataclass(frozen=True)
class Norms:
    """Trajectories of decaying structures, released ones last, so that they lie on top."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    trajectories: list[Trajectory]
    left_out: int


def training(report: Report) -> Training | None:
    """Return the curves of accuracy, loss and MACs left; None without a history."""
    if not report.history:
        return None
    axis = step_axis([moment.step for moment in report.history])
    bins = _binned(report.history, axis)
    summary = report.summary
    rounds = summary.rounds if summary is not None else ()
    reference = summary.accuracy_before if summary is not None else None
    metric = report.history[-1].metric
    label = percent_label if metric == "accuracy" else "{:.4g}".format
    panels = [
        _panel(metric, bins, axis, lambda m: m.accuracy, label, reference),
        # A loss that the model is judged by as well has the panel above, on the test split.
        _panel("training loss" if metric == "loss" else "loss", bins, axis, _loss, "{:g}".format),
        _macs(report, bins, axis),
    ]
    return Training(
        ticks=step_ticks(axis),
        phases=_phases(report.history, axis),
        rounds=[axis.x(step) for step in rounds if axis.low <= step <= axis.high],
        panels=[panel for panel in panels if panel is not None],
        cells=[_moment_cell(moments, axis) for moments in bins],
    )


def _loss(moment: Moment) -> float | None:
    return moment.loss


def _macs(report: Report, bins: list[list[Moment]], x: Axis) -> Panel | None:
    """The MACs left over the whole run, from nothing to all of them, with the budget."""
    known = [m.committed for m in report.history if m.committed is not None]
    if not known:
        return None

    def left(moment: Moment) -> float:
        if moment.committed is not None:
            return moment.committed
        return 1.0 if moment.phase == "train" else known[-1]

    budget = report.summary.budget.get("macs") if report.summary is not None else None
    panel = _panel(_MACS, bins, x, left, percent_label, budget)
    if panel is None or budget is None:
        return panel
    return replace(panel, mark=f"budget {percent_label(budget)}")


def percent_label(fraction: float) -> str:
    """Write a fraction as a short percentage for an axis."""
    return f"{100 * fraction:.3g} %"


def _binned(history: Sequence[Moment], axis: Axis) -> list[list[Moment]]:
    bins: dict[int, list[Moment]] = defaultdict(list)
    for moment in history:
        bins[min(_BINS - 1, int(_BINS * axis.at(moment.step)))].append(moment)
    return [bins[i] for i in sorted(bins)]


def _phases(history: Sequence[Moment], axis: Axis) -> list[Cell]:
    starts: dict[str, int] = {}
    for moment in history:
        starts.setdefault(moment.phase, moment.step)
    edges = [*(axis.x(step) for step in starts.values()), WIDTH]
    return [
        Cell(left, round(right - left, 1), _PHASE_NAMES[phase])
        for phase, left, right in zip(starts, edges, edges[1:], strict=False)
    ]


class _Point(NamedTuple):
    """A bin of a curve."""

    x: float
    mean: float
    low: float
    high: float
    phase: str


def _panel(
    name: str,
    bins: list[list[Moment]],
    x: Axis,
    value: Callable[[Moment], float | None],
    label: Callable[[float], str],
    reference: float | None = None,
) -> Panel | None:
    points: list[_Point | None] = []
    for moments in bins:
        found = [v for m in moments if (v := value(m)) is not None]
        if found:
            middle = x.x(sum(m.step for m in moments) / len(moments))
            mean = sum(found) / len(found)
            points.append(_Point(middle, mean, min(found), max(found), moments[-1].phase))
        elif value is _loss:
            points.append(None)  # not finite: the line breaks here
    drawn = [point for point in points if point is not None]
    if not drawn:
        return None
    if name == _MACS:
        y = Axis(0, 1.03 * max(1.0, *(p.high for p in drawn)))
    else:
        y = _loss_axis(drawn) if value is _loss else _share_axis(drawn, reference)
    band = [(p.x, y.y(p.high)) for p in drawn] + [(p.x, y.y(p.low)) for p in reversed(drawn)]
    return Panel(
        name=name,
        ticks=ticks(y, label, about=3),
        line=polyline([None if p is None else (p.x, y.y(p.mean)) for p in points]),
        band=polyline(band) + "Z" if any(p.low < p.high for p in drawn) else "",
        dots="".join(f"M{p.x} {y.y(p.mean)}h0" for p in drawn) if len(drawn) <= 60 else "",
        reference=None if reference is None else y.y(reference),
    )


def _loss_axis(points: list[_Point]) -> Axis:
    low, high = min(p.low for p in points), max(p.high for p in points)
    if low > 0:
        return Axis(low / 1.15, high * 1.15, log=True)
    margin = 0.06 * (high - low) or max(1.0, abs(high))
    return Axis(low - margin, high + margin)


def _share_axis(points: list[_Point], reference: float | None) -> Axis:
    """Return an axis that fits what happens from pruning on; training before may rise into it."""
    later = [p for p in points if p.phase != "train"] or points
    marks = [] if reference is None else [reference]
    low, high = min(marks + [p.low for p in later]), max(marks + [p.high for p in points])
    # Two points at least: noise must not fill the plot.
    low = min(low, high - max(0.02, 1e-9 * high))
    margin = 0.08 * (high - low)
    return Axis(low - margin, high + margin)


def _moment_cell(moments: list[Moment], axis: Axis) -> Cell:
    first, last = moments[0], moments[-1]
    losses = [m.loss for m in moments if m.loss is not None]
    parts = [f"{span(first.step, last.step)}, {_PHASE_NAMES[last.phase]}"]
    parts.append(f"loss {figure(sum(losses) / len(losses))}" if losses else "loss not finite")
    if last.lr is not None:
        parts.append(f"learning rate {figure(last.lr)}")
    if accuracies := [m.accuracy for m in moments if m.accuracy is not None]:
        parts.append(f"{last.metric} {score(last.metric, accuracies[-1], 2)}")
    if committed := [m.committed for m in moments if m.committed is not None]:
        parts.append(f"MACs left {percent(committed[-1])}")
    width = WIDTH / _BINS
    left = math.floor(axis.at(first.step) * _BINS) * width
    return Cell(round(min(left, WIDTH - width), 1), round(width, 2), "\n".join(parts))


def norms(report: Report) -> Norms | None:
    """Return the trajectories of decaying structures; None where none were sampled."""
    if not report.norms:
        return None
    x = step_axis([norm.step for norm in report.norms])
    longest = max(max(norm.start, norm.length or 0.0) for norm in report.norms)
    y = Axis(0, 1.04 * max(longest, 1e-30))
    ends: dict[int, list[EventRow]] = defaultdict(list)
    for event in report.events:
        if event.kind != "decay":
            ends[event.structure].append(event)
    decays = _decays(report.norms)
    found = [_trajectory(samples, ends[samples[0].structure], x, y) for samples in decays]
    released = _spread([t for t in found if t.outcome == "released"], _TRAJECTORIES // 2)
    others = [t for t in found if t.outcome != "released"]
    kept = _spread(others, _TRAJECTORIES - len(released)) + released
    return Norms(step_ticks(x), ticks(y, "{:g}".format, about=4), kept, len(found) - len(kept))


def _spread(items: list[Trajectory], most: int) -> list[Trajectory]:
    """Thin a list evenly from its first item to its last."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _decays(samples: Sequence[Norm]) -> list[list[Norm]]:
    """Split samples into decays: a structure that is picked again starts from a new length."""
    decays: dict[tuple[int, float], list[Norm]] = defaultdict(list)
    for sample in samples:
        decays[sample.structure, sample.start].append(sample)
    return list(decays.values())


def _trajectory(samples: list[Norm], ends: list[EventRow], x: Axis, y: Axis) -> Trajectory:
    end = next((e for e in ends if e.step >= samples[0].step), None)
    outcome = "decaying"
    title = f"structure {samples[0].structure}"
    if end is not None:
        outcome = "released" if end.kind == "release" else "pruned"
        title = f"{end.layer} #{end.index}: {outcome} at step {end.step:,}"
        if end.kind == "release":
            title += f"\n{evidence(end)}"
    stride = math.ceil(len(samples) / 60)
    thinned = [*samples[:-1:stride], samples[-1]]
    points = [None if s.length is None else (x.x(s.step), y.y(s.length)) for s in thinned]
    last = polyline(points[-1:]) + "h0" if points[-1] is not None else ""
    return Trajectory(polyline(points), last, outcome, title)
