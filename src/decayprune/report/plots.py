"""Geometry of the plots: where every line, band and dot of the page goes.

Pure functions from a report to plain coordinates; the templates only draw them. A plot area is
1000 wide and 100 high, stretched to whatever the page gives it (text stays outside, so it is never
distorted). Everything is binned or thinned to a bounded size: a page of a long run is no larger.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decayprune.report.records import Event, Moment, Norm
from decayprune.report.run import Report
from decayprune.report.text import figure, percent

_WIDTH = 1000.0
_HEIGHT = 100.0
_BINS = 240  # of the training curves: about one for four pixels
_TRAJECTORIES = 80
_LANES = 80
_CELLS = 2400  # hover cells of the whole timeline, about 200 bytes each
_PHASE_NAMES = {"train": "train", "prune": "prune", "finetune": "fine-tune"}


@dataclass(frozen=True)
class Axis:
    """A linear axis; ``at`` maps a value to its share of the axis."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return where a value lies, 0 at the low end and 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def x(self, value: float) -> float:
        """Return the abscissa of a value in plot coordinates."""
        return round(_WIDTH * self.at(value), 1)

    def y(self, value: float) -> float:
        """Return the ordinate of a value in plot coordinates (which grow downwards)."""
        return round(_HEIGHT * (1 - self.at(value)), 2)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in per cent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Cell:
    """An invisible rectangle that shows its figures under the pointer."""

    x: float
    width: float
    title: str


@dataclass(frozen=True)
class Panel:
    """One curve over steps: its mean line, the band from lowest to highest, single points."""

    name: str
    ticks: list[Tick]
    line: str
    band: str
    dots: str
    reference: float | None


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
    """One structure's relative length over steps, and how its decay ended."""

    line: str
    outcome: str
    title: str


@dataclass(frozen=True)
class Norms:
    """Trajectories of decaying structures, released ones last, so that they lie on top."""

    ticks: list[Tick]
    trajectories: list[Trajectory]
    left_out: int


@dataclass(frozen=True)
class Lane:
    """One layer's timeline: what remains, what of it decays, and where structures were released."""

    layer: str
    kept: str
    decaying: str
    releases: list[tuple[float, float]]
    cells: list[Cell]
    summary: str


@dataclass(frozen=True)
class Timeline:
    """Lanes of the layers on one axis of steps."""

    ticks: list[Tick]
    lanes: list[Lane]
    left_out: int


def ticks(axis: Axis, label: Callable[[float], str], about: int = 5) -> list[Tick]:
    """Return round places along an axis, about as many as asked for.

    >>> [tick.label for tick in ticks(Axis(0, 1000), "{:.0f}".format)]
    ['0', '200', '400', '600', '800', '1000']
    """
    rough = (axis.high - axis.low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= 0.999 * rough)
    first, last = math.ceil(axis.low / stride - 1e-9), math.floor(axis.high / stride + 1e-9)
    places = [i * stride for i in range(first, last + 1)]
    return [Tick(round(100 * axis.at(place), 2), label(place)) for place in places]


def _steps(steps: Sequence[int]) -> Axis:
    low, high = min(steps), max(steps)
    return Axis(low, max(high, low + 1))


def _step_ticks(axis: Axis) -> list[Tick]:
    marks = ticks(axis, "{:,.10g}".format, about=5)
    return [mark for mark in marks if "." not in mark.label]


def training(report: Report) -> Training | None:
    """Return the curves of accuracy, loss and committed compute; None without a history."""
    if not report.history:
        return None
    axis = _steps([moment.step for moment in report.history])
    bins = _binned(report.history, axis)
    summary = report.summary
    rounds = summary.rounds if summary is not None else ()
    reference = summary.accuracy_before if summary is not None else None
    panels = [
        _panel("accuracy", bins, axis, lambda m: m.accuracy, percent_label, reference),
        _panel("loss", bins, axis, lambda m: m.loss, "{:g}".format, None),
        _panel("compute committed", bins, axis, lambda m: m.committed, percent_label, None),
    ]
    return Training(
        ticks=_step_ticks(axis),
        phases=_phases(report.history, axis),
        rounds=[axis.x(step) for step in rounds if axis.low <= step <= axis.high],
        panels=[panel for panel in panels if panel is not None],
        cells=[_moment_cell(moments, axis) for moments in bins],
    )


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
    edges = [*(axis.x(step) for step in starts.values()), _WIDTH]
    return [
        Cell(left, round(right - left, 1), _PHASE_NAMES[phase])
        for phase, left, right in zip(starts, edges, edges[1:], strict=False)
    ]


def _panel(
    name: str,
    bins: list[list[Moment]],
    x: Axis,
    value: Callable[[Moment], float | None],
    label: Callable[[float], str],
    reference: float | None,
) -> Panel | None:
    points: list[tuple[float, float, float, float] | None] = []  # x, mean, lowest, highest
    for moments in bins:
        found = [v for m in moments if (v := value(m)) is not None]
        if found:
            middle = x.x(sum(m.step for m in moments) / len(moments))
            points.append((middle, sum(found) / len(found), min(found), max(found)))
        elif name == "loss":
            points.append(None)  # not finite: the line breaks here
    drawn = [point for point in points if point is not None]
    if not drawn:
        return None
    y = _value_axis(drawn, reference)
    band = [(p[0], y.y(p[3])) for p in drawn] + [(p[0], y.y(p[2])) for p in reversed(drawn)]
    dots = "".join(f"M{p[0]} {y.y(p[1])}h0" for p in drawn) if len(drawn) <= 60 else ""
    return Panel(
        name=name,
        ticks=ticks(y, label, about=3),
        line=_polyline([None if p is None else (p[0], y.y(p[1])) for p in points]),
        band=_polyline(band) + "Z" if any(p[2] < p[3] for p in drawn) else "",
        dots=dots,
        reference=None if reference is None else y.y(reference),
    )


def _value_axis(points: list[tuple[float, float, float, float]], reference: float | None) -> Axis:
    means = sorted(point[1] for point in points)
    usual = means[int(0.95 * (len(means) - 1))]
    low = min(point[2] for point in points)
    # One exploded step must not flatten the rest of the curve: it runs out of the top instead.
    high = min(max(point[3] for point in points), max(means[-1], low) if usual <= low else 4 * usual)
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin)


def _polyline(points: Sequence[tuple[float, float] | None]) -> str:
    path, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        path.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "L"
    return "".join(path)


def _moment_cell(moments: list[Moment], axis: Axis) -> Cell:
    first, last = moments[0], moments[-1]
    steps = f"step {first.step:,}" if len(moments) == 1 else f"steps {first.step:,}–{last.step:,}"
    losses = [m.loss for m in moments if m.loss is not None]
    parts = [f"{steps}, {_PHASE_NAMES[last.phase]}"]
    parts.append(f"loss {figure(sum(losses) / len(losses))}" if losses else "loss not finite")
    if last.lr is not None:
        parts.append(f"learning rate {figure(last.lr)}")
    if accuracies := [m.accuracy for m in moments if m.accuracy is not None]:
        parts.append(f"accuracy {percent(accuracies[-1], 2)}")
    if committed := [m.committed for m in moments if m.committed is not None]:
        parts.append(f"compute committed {percent(committed[-1])}")
    width = _WIDTH / _BINS
    left = math.floor(axis.at(first.step) * _BINS) * width
    return Cell(round(min(left, _WIDTH - width), 1), round(width, 2), "\n".join(parts))


def norms(report: Report) -> Norms | None:
    """Return the trajectories of decaying structures; None where none were sampled."""
    if not report.norms:
        return None
    axis = _steps([norm.step for norm in report.norms])
    ends: dict[int, list[Event]] = defaultdict(list)
    for event in report.events:
        if event.kind != "decay":
            ends[event.structure].append(event)
    decays = _decays(report.norms)
    found = [_trajectory(samples, ends[samples[0].structure], axis) for samples in decays]
    rank = {"released": 0, "pruned": 1, "decaying": 1}
    kept = sorted(found, key=lambda t: rank[t.outcome])[:_TRAJECTORIES]
    return Norms(_step_ticks(axis), kept[::-1], len(found) - len(kept))


def _decays(samples: Sequence[Norm]) -> list[list[Norm]]:
    """Split samples into single decays: a structure that is picked again starts from a new length."""
    decays: dict[tuple[int, float], list[Norm]] = defaultdict(list)
    for sample in samples:
        decays[sample.structure, sample.start].append(sample)
    return list(decays.values())


def _trajectory(samples: list[Norm], ends: list[Event], axis: Axis) -> Trajectory:
    end = next((e for e in ends if e.step >= samples[-1].step), ends[-1] if ends else None)
    outcome = "decaying"
    title = f"structure {samples[0].structure}"
    if end is not None:
        outcome = "released" if end.kind == "release" else "pruned"
        title = f"{end.layer} #{end.index}: {outcome} at step {end.step:,}"
        if end.kind == "release":
            title += f"\n{_figures(end)}"
    stride = math.ceil(len(samples) / 60)
    thinned = [*samples[:-1:stride], samples[-1]]
    ratios = Axis(0, 1.05)
    points = [(axis.x(s.step), ratios.y(_ratio(s))) for s in thinned]
    return Trajectory(_polyline(points), outcome, title)


def _ratio(sample: Norm) -> float:
    return min(sample.length / sample.start, 1.05) if sample.start > 0 else 0.0


def _figures(event: Event) -> str:
    return f"C_rate {figure(event.c_rate)}, C_len {figure(event.c_len)}, W {figure(event.work)}"


def timeline(report: Report) -> Timeline | None:
    """Return decays and releases by layer; None where nothing happened."""
    if not report.events:
        return None
    axis = _steps([event.step for event in report.events])
    layers: dict[str, list[Event]] = defaultdict(list)
    for event in report.events:
        layers[event.layer].append(event)
    widths = {w.layer: w for w in report.summary.widths} if report.summary is not None else {}
    busiest = sorted(layers, key=lambda layer: -len(layers[layer]))[:_LANES]
    places = {layer: i for i, layer in enumerate(widths)}
    shown = sorted(busiest, key=lambda layer: places.get(layer, len(places)))
    bins = max(24, min(96, _CELLS // len(shown)))
    lanes = []
    for layer in shown:
        width = widths.get(layer)
        total = _structures(layers[layer], (width.before, width.after) if width else None)
        lanes.append(_lane(layer, layers[layer], axis, bins, total))
    return Timeline(_step_ticks(axis), lanes, len(layers) - len(shown))


def _structures(events: list[Event], width: tuple[int, int] | None) -> int:
    """How many structures a layer has, as far as the logs tell."""
    touched = len({event.structure for event in events})
    if width is None:
        return touched
    before, after = width
    pruned = len({event.structure for event in events if event.kind == "prune"})
    # A structure may be several channels wide (an attention head): what left says how many.
    channels = max(1, round((before - after) / pruned)) if pruned else 1
    return max(touched, before // channels)


def _lane(layer: str, events: list[Event], axis: Axis, bins: int, total: int) -> Lane:
    binned: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        binned[min(bins - 1, int(bins * axis.at(event.step)))].append(event)
    decaying: set[int] = set()
    pruned: set[int] = set()
    kept_edges, decay_edges, cells, releases = [], [], [], []
    size = _WIDTH / bins
    for i in sorted(binned):
        for event in binned[i]:
            (decaying.add if event.kind == "decay" else decaying.discard)(event.structure)
            if event.kind == "prune":
                pruned.add(event.structure)
        left = round(i * size, 1)
        kept_edges.append((left, (total - len(pruned)) / total))
        decay_edges.append((left, (total - len(pruned) - len(decaying)) / total))
        state = f"{total - len(pruned)} of {total} remain, {len(decaying)} of them decaying"
        cells.append(Cell(left, round(size, 2), _cell_title(binned[i], state)))
        if count := sum(event.kind == "release" for event in binned[i]):
            releases.append((round(left + size / 2, 1), round(min(4 + 1.6 * math.sqrt(count), 12), 1)))
    counts = [sum(event.kind == "release" for event in events), len(pruned)]
    return Lane(
        layer=layer,
        kept=_stairs(kept_edges),
        decaying=_stairs(kept_edges) + _stairs(decay_edges),
        releases=releases,
        cells=cells,
        summary=f"{total} → {total - counts[1]}" + (f", {counts[0]} released" if counts[0] else ""),
    )


def _stairs(edges: list[tuple[float, float]]) -> str:
    """Return the closed area under a falling staircase; two of them, even-odd, leave a band."""
    path, level = ["M0 100V0"], 1.0
    for left, share in edges:
        if share != level:
            path.append(f"H{left:g}V{_HEIGHT * (1 - share):.4g}")
            level = share
    return "".join(path) + "H1000V100Z"


def _cell_title(events: list[Event], state: str) -> str:
    first, last = events[0].step, events[-1].step
    steps = f"step {first:,}" if first == last else f"steps {first:,}–{last:,}"
    verbs = {"decay": "began to decay", "release": "released", "prune": "reached zero"}
    counts = [(sum(e.kind == kind for e in events), verb) for kind, verb in verbs.items()]
    lines = [steps, ", ".join(f"{n} {verb}" for n, verb in counts if n), state]
    released = [event for event in events if event.kind == "release"]
    lines += [f"#{event.index} released: {_figures(event)}" for event in released[:3]]
    if len(released) > 3:
        lines.append(f"and {len(released) - 3} more released")
    return "\n".join(lines)
