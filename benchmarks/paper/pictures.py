"""Pictures of the comparison: accuracy against MACs, with intervals, from the rows of a summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from goals import NAMES, TITLES
from scipy import stats

LOOK = {
    "alone": ("host alone", "#8a8f98", "o", 0.98),
    "sp": ("+SP", "#2f6fde", "s", 1.0),
    "sp_sr": ("+SP+SR", "#d9480f", "D", 1.02),
}
"""Label, colour, marker, and how far a point is drawn aside so that intervals do not overlap."""

_ACROSS = 3
_DEEP = 12
"""Points below the best that are shown; a collapse would flatten all the rest."""


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[tuple[str, str]]:
    """One picture per task and model, a panel per host, three to a row.

    Args:
        rows: Of a summary.
        folder: Where the pictures go.

    Returns:
        Title and file name of each.
    """
    found = []
    rows = [row for row in rows if row["variant"] in LOOK]
    for task, model in sorted({(row["task"], row["model"]) for row in rows}):
        mine = [r for r in rows if (r["task"], r["model"]) == (task, model)]
        hosts = [h for h in TITLES if any(row["host"] == h for row in mine)]
        high, wide = math.ceil(len(hosts) / _ACROSS), min(len(hosts), _ACROSS)
        figure, axes = plt.subplots(
            high, wide, figsize=(3.4 * wide + 0.6, 3.1 * high + 0.3), sharey=True, squeeze=False
        )
        for axis, host in zip(axes.flat, hosts, strict=False):
            _panel(axis, [row for row in mine if row["host"] == host])
            axis.set_title(TITLES.get(host, host))
        for unused in axes.flat[len(hosts) :]:
            unused.remove()
        best = max(row["acc_mean"] for row in mine)
        lowest = min(row["acc_mean"] - _half(row) for row in mine)
        bottom = max(lowest - 0.5, best - _DEEP)
        axes[0][0].set_ylim(bottom, best + 1)
        for axis, host in zip(axes.flat, hosts, strict=False):
            _halvings(axis, sorted({100 * row["budget"] for row in mine}))
            _name_collapsed(axis, [r for r in mine if r["host"] == host], bottom)
        for row in axes:
            row[0].set_ylabel("test accuracy (%)")
        axes[0][-1].legend(frameon=False)
        apart = " " if wide > 1 else "\n"  # a single panel is narrower than the title
        title = f"{NAMES.get(model, model)}, {task}:{apart}mean of the seeds, 95 % intervals"
        figure.suptitle(title)
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        name = f"accuracy-{task}-{model}.svg".replace("_", "-")
        # No date and fixed ids, so that the same runs give the same file.
        with plt.rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)
        found.append((f"{model} on {task}", name))
    return found


def _panel(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for variant, (label, colour, marker, aside) in LOOK.items():
        points = sorted((r for r in rows if r["variant"] == variant), key=lambda r: r["macs_ratio"])
        if not points:
            continue
        axis.errorbar(
            [100 * row["macs_ratio"] * aside for row in points],
            [row["acc_mean"] for row in points],
            yerr=[_half(row) for row in points],
            label=label,
            color=colour,
            marker=marker,
            markersize=4,
            capsize=3,
            linewidth=1.4,
        )
    axis.set_xlabel("MACs that remain (%)")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _halvings(axis: Any, budgets: Sequence[float]) -> None:
    """As far from one half to the next."""
    axis.set_xscale("log", base=2)
    axis.set_xlim(budgets[0] / 1.3, budgets[-1] * 1.3)
    axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])


def _name_collapsed(axis: Any, rows: Sequence[Mapping[str, Any]], bottom: float) -> None:
    """Write down what lies below the picture."""
    for row in (row for row in rows if row["acc_mean"] < bottom):
        label, colour, *_ = LOOK[row["variant"]]
        axis.annotate(
            f"{label}:\n{row['acc_mean']:.1f}, below",
            (100 * row["macs_ratio"], bottom),
            xytext=(4, 5),
            textcoords="offset points",
            ha="left",
            color=colour,
            fontsize=8,
        )


def _half(row: Mapping[str, Any]) -> float:
    if row["acc_std"] is None:
        return 0.0
    quantile = float(stats.t.ppf(0.975, row["seeds"] - 1))
    return quantile * row["acc_std"] / math.sqrt(row["seeds"])
