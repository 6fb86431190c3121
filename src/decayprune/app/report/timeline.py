"""The timeline: when the structures of each layer began to decay, were released, reached zero.

Pure functions from a report to coordinates. Steps are binned and the busiest layers shown, so that
a run of any length makes a page of bounded size; the event log itself keeps every figure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

from decayprune.app.report.axes import HEIGHT, WIDTH, Axis, Cell, Tick, step_axis, step_ticks
from decayprune.app.report.records import EventRow, Width
from decayprune.app.report.run import Report
from decayprune.app.report.text import evidence, span

_LANES = 80
_AFTER = 6  # so much of the axis follows the last event, if training went on
_CELLS = 2400  # hover cells of the whole timeline, about 200 bytes each


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


def timeline(report: Report) -> Timeline | None:
    """Return decays and releases by layer; None where nothing happened."""
    if not report.events:
        return None
    axis = step_axis([event.step for event in report.events])
    # Most structures are pruned at the very end, which is to be seen.
    after = axis.high + (axis.high - axis.low) / _AFTER
    axis = replace(axis, high=max(axis.high, min(after, report.trace.last_step)))
    layers: dict[str, list[EventRow]] = defaultdict(list)
    for event in report.events:
        layers[event.layer].append(event)
    widths = {w.layer: w for w in report.summary.widths} if report.summary is not None else {}
    busiest = sorted(layers, key=lambda layer: -len(layers[layer]))[:_LANES]
    # Structures are numbered through the network, so the lowest one puts a layer in its place.
    shown = sorted(busiest, key=lambda layer: min(event.structure for event in layers[layer]))
    bins = max(24, min(96, _CELLS // len(shown)))
    lanes = [_lane(layer, layers[layer], axis, bins, widths.get(layer)) for layer in shown]
    return Timeline(step_ticks(axis), lanes, len(layers) - len(shown))


def _structures(events: list[EventRow], width: Width | None) -> int:
    """How many structures a layer has; without its width, how many the log has touched."""
    touched = len({event.structure for event in events})
    if width is None:
        return touched
    pruned = len({event.structure for event in events if event.kind == "prune"})
    # A structure may be several channels wide (an attention head): what left says how many.
    channels = max(1, round((width.before - width.after) / pruned)) if pruned else 1
    return max(touched, width.before // channels)


def _lane(layer: str, events: list[EventRow], axis: Axis, bins: int, width: Width | None) -> Lane:
    total = _structures(events, width)
    binned: dict[int, list[EventRow]] = defaultdict(list)
    for event in events:
        binned[min(bins - 1, int(bins * axis.at(event.step)))].append(event)
    decaying: set[int] = set()
    pruned: set[int] = set()
    kept_edges, decay_edges, cells, releases = [], [], [], []
    size = WIDTH / bins
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
            releases.append(
                (round(left + size / 2, 1), round(min(4 + 1.6 * math.sqrt(count), 12), 1))
            )
    released = sum(event.kind == "release" for event in events)
    remains = f"{total} → {total - len(pruned)}" if width is not None else f"{len(pruned)} pruned"
    return Lane(
        layer=layer,
        kept=_stairs(kept_edges),
        decaying=_stairs(kept_edges) + _stairs(decay_edges),
        releases=releases,
        cells=cells,
        summary=f"{remains}, {released} released" if released else remains,
    )


def _stairs(edges: list[tuple[float, float]]) -> str:
    """Return the closed area under a falling staircase; two of them, even-odd, leave a band."""
    path, level = ["M0 100V0"], 1.0
    for left, share in edges:
        if share != level:
            path.append(f"H{left:g}V{HEIGHT * (1 - share):.4g}")
            level = share
    return "".join(path) + "H1000V100Z"


def _cell_title(events: list[EventRow], state: str) -> str:
    verbs = {"decay": "began to decay", "release": "released", "prune": "reached zero"}
    counts = [(sum(e.kind == kind for e in events), verb) for kind, verb in verbs.items()]
    lines = [
        span(events[0].step, events[-1].step),
        ", ".join(f"{n} {verb}" for n, verb in counts if n),
        state,
    ]
    released = [event for event in events if event.kind == "release"]
    lines += [f"#{event.index} released: {evidence(event)}" for event in released[:3]]
    if len(released) > 3:
        lines.append(f"and {len(released) - 3} more released")
    return "\n".join(lines)
