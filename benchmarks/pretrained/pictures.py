"""Pictures of the experiment: accuracy against MACs, against measured latency, against recovery."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from plan import STEPS
from scipy import stats

Run = dict[str, Any]

LOOK = {  # arm: label, colour, marker
    "abrupt": ("cut at once, by magnitude", "#8a8f98", "o"),
    "sp_sr": ("smooth, releases, by magnitude", "#2f6fde", "s"),
    "sensitive_abrupt": ("cut at once, calibrated", "#f2b01e", "8"),
    "sensitive_sp_sr": ("smooth, releases, calibrated", "#b8860b", "p"),
    "sensitive_abrupt_distil": ("cut at once, calibrated, taught", "#c92a2a", "d"),
    "torch_pruning_taylor_distil": ("Torch-Pruning, Taylor, taught", "#087f5b", "x"),
    "ridge_abrupt": ("cut at once, compensated, by variance", "#e8890c", "^"),
    "ridge_sp_sr": ("smooth, releases, compensated, by variance", "#d9480f", "D"),
    "ridge_handover": ("smooth, releases, handed over", "#a61e4d", "v"),
    "torch_pruning": ("Torch-Pruning", "#2b8a3e", "P"),
    "torch_pruning_taylor": ("Torch-Pruning, Taylor", "#66a80f", "X"),
    "last_layers": ("last layers dropped", "#5f3dc4", "*"),
    "scratch_total": ("same shape from scratch, equal compute in all", "#a0752a", ">"),
    "sensitive_within": ("cut early in one loop, equal compute", "#e03131", "H"),
    "sensitive_early": ("cut early in two loops, equal compute", "#f76707", "^"),
    "torch_pruning_taylor_early": ("Torch-Pruning, cut early, equal compute", "#099268", "X"),
    "scratch_extra": ("same shape from scratch", "#c2a25d", "<"),
    "dense_on": ("dense, trained on", "#212529", "h"),
}
OVERVIEW = (
    "torch_pruning_taylor_early",
    "sensitive_within",
    "dense_on",
    "sensitive_abrupt",
    "torch_pruning_taylor",
    "sensitive_sp_sr",
    "sp_sr",
    "abrupt",
    "last_layers",
    "scratch_total",
)
"""What a person chooses from; ablations stand in the tables."""
_PAIRS_FOR_AN_INTERVAL = 4
_DEEP = 15
"""Points below the best that are shown: what is trained from scratch lies far below all others."""


def overview(runs: Sequence[Run], folder: Path) -> None:
    """What a person gets, arm by arm: accuracy in the column that decides.

    Args:
        runs: Those of that column, on equal seeds.
        folder: Where ``trained.svg`` goes.
    """
    scores = {
        arm: [100 * run["accuracy"] for run in runs if run["trial"]["arm"] == arm]
        for arm in OVERVIEW
    }
    order = sorted(
        (arm for arm, found in scores.items() if found), key=lambda a: statistics.fmean(scores[a])
    )
    figure, panel = plt.subplots(figsize=(8, 0.42 * len(order) + 1.2), layout="constrained")
    for line, arm in enumerate(order):
        _, colour, marker = LOOK[arm]
        middle = statistics.fmean(scores[arm])
        panel.plot(scores[arm], [line] * len(scores[arm]), ".", color=colour, alpha=0.6)
        half = _half(scores[arm]) if len(scores[arm]) >= _PAIRS_FOR_AN_INTERVAL else None
        panel.errorbar(middle, line, xerr=half, color=colour, marker=marker, capsize=3)
        panel.annotate(f"{middle:.1f}", (middle, line), (0, 7), textcoords="offset points")
    panel.set_yticks(range(len(order)), [LOOK[arm][0] for arm in order])
    panel.set_ylim(-0.5, len(order) - 0.3)
    panel.margins(x=0.08)  # labels stand right of their marks
    dense = statistics.fmean(100 * run["dense_accuracy"] for run in runs)
    panel.axvline(dense, color="#212529", linewidth=0.8, linestyle=":")
    panel.set_xlabel("test accuracy (%)\ndots: seeds; dotted line: the dense network before")
    _saved(figure, "trained.svg", folder)


def draw(runs: Sequence[Run], of: str, folder: Path) -> list[tuple[str, str]]:
    """Three pictures.

    Args:
        runs: Finished ones.
        of: The task.
        folder: Where the pictures go.

    Returns:
        Title and file name of each.
    """
    axes: list[tuple[str, str, Callable[[Run], float]]] = [
        ("accuracy against MACs", "MACs left (%)", lambda run: 100 * run["macs"]),
        (
            "accuracy against measured latency",
            "milliseconds, 8 examples, one thread",
            lambda run: run["milliseconds"][1],
        ),
    ]
    found = []
    for title, label, where in axes:
        figure, panels = plt.subplots(
            1, len(STEPS), figsize=(10, 5), sharey=True, layout="constrained"
        )
        for panel, steps in zip(panels, STEPS, strict=True):
            mine = [run for run in runs if run["trial"]["steps"] == steps]
            _lines(panel, mine, where, lambda run: run["trial"]["budget"])
            panel.set_title(f"after {steps:,} steps")
            panel.set_xlabel(label)
        found.append((title, _finish(figure, panels, title, of, folder)))
    budgets = sorted({run["trial"]["budget"] for run in runs})
    figure, panels = plt.subplots(
        1, len(budgets), figsize=(10, 5), sharey=True, layout="constrained", squeeze=False
    )
    for panel, budget in zip(panels[0], budgets, strict=True):
        mine = [run for run in runs if run["trial"]["budget"] == budget]
        _lines(panel, mine, lambda run: run["trial"]["steps"], lambda run: run["trial"]["steps"])
        panel.set_title(f"{budget:.0%} of the MACs")
        panel.set_xlabel("steps, pruning included")
        panel.set_xscale("log")
        panel.set_xticks(STEPS, [f"{steps:,}" for steps in STEPS])
        panel.minorticks_off()
    title = "accuracy against recovery"
    recovery = (title, _finish(figure, panels[0], title, of, folder))
    return [*found, recovery]


def _lines(
    panel: Any, runs: Sequence[Run], where: Callable[[Run], float], same: Callable[[Run], float]
) -> None:
    """A line per arm; runs that agree in ``same`` are one point, with its 95 % interval."""
    for arm, (label, colour, marker) in LOOK.items():
        mine = [run for run in runs if run["trial"]["arm"] == arm]
        points = []
        for key in sorted({same(run) for run in mine}):
            group = [run for run in mine if same(run) == key]
            scores = [100 * run["accuracy"] for run in group]
            middle = statistics.median(where(run) for run in group)
            points.append((middle, statistics.fmean(scores), _half(scores)))
        if points:
            x, y, error = zip(*points, strict=True)
            panel.errorbar(x, y, error, label=label, color=colour, marker=marker, capsize=2)
    dense = [100 * run["dense_accuracy"] for run in runs]
    if dense:
        panel.axhline(statistics.fmean(dense), color="#212529", linewidth=0.8, linestyle=":")


def _half(scores: Sequence[float]) -> float:
    """Half of the 95 % t interval of a mean; 0 for one score."""
    n = len(scores)
    if n < 2:
        return 0.0
    return float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(scores) / n**0.5


def _finish(figure: Any, panels: Sequence[Any], title: str, of: str, folder: Path) -> str:
    best = max(panel.dataLim.y1 for panel in panels)
    lowest = min(panel.dataLim.y0 for panel in panels)
    panels[0].set_ylim(max(lowest - 0.5, best - _DEEP), best + 0.5)
    panels[0].set_ylabel("test accuracy (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{of}: {title} (dotted: dense)")
    return _saved(figure, title.replace(" ", "-") + ".svg", folder)


def _saved(figure: Any, name: str, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    # No date and fixed ids, so that the same runs give the same file.
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(folder / name, metadata={"Date": None})
    plt.close(figure)
    return name
