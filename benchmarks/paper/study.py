"""The comparison on Fashion-MNIST: which trials belong to which tier, and one command to run them.

    python benchmarks/paper/study.py run --tier 1 --processes 2    # hours; stop and rerun at will
    python benchmarks/paper/study.py tables       # summary.json, docs/study.md, docs/ablations.md

Every run leaves one JSON file in ``results/runs``; tables are made of those files alone, the page
of ablations of ``results/probe.jsonl``.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import settings
import torch
from goals import BUDGETS, NAMES, SEEDS, TITLES, goals
from goals import markdown as goals_table
from pages import fill
from trials import tiers

from decayprune.app.run.methods import HOSTS, VARIANTS
from decayprune.app.run.settings import DATA_DIR
from decayprune.app.study import figures, grid
from decayprune.app.study.job import result_file
from decayprune.app.study.trial import CONTROLS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def complete(folder: Path) -> list[str]:
    """How far each tier is, in words."""
    lines = []
    for tier, wanted in tiers().items():
        done = sum(result_file(folder, trial).is_file() for trial in wanted)
        state = "complete" if done == len(wanted) else "incomplete"
        broken = sum((folder / "failed" / f"{t.name}.json").is_file() for t in wanted)
        lines.append(
            f"- tier {tier}: {state}, {done} of {len(wanted)} runs"
            + (f"; {broken} failed and left out of their pairs" if broken else "")
        )
    return lines


def overview(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per network and host, a column per budget: what decaying and releasing gain."""
    cells: dict[tuple[str, str], dict[float, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        if row["task"] == "fashion-mnist" and row["seeds"] >= SEEDS:
            budgets = cells.setdefault((row["model"], row["host"]), {})
            budgets.setdefault(row["budget"], {})[row["variant"]] = row
    lines = [
        f"| MACs left | {' | '.join(f'{100 * budget:g} %' for budget in BUDGETS)} |",
        f"| --- |{' :---: |' * len(BUDGETS)}",
    ]
    for (model, host), budgets in cells.items():
        found = [_gain_cell(budgets.get(budget, {})) for budget in BUDGETS]
        lines.append(f"| {NAMES.get(model, model)}, {TITLES[host]} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def _gain_cell(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Both accuracies and the gain, in bold where its interval is above zero."""
    if "alone" not in variants or "sp_sr" not in variants:
        return "not run"
    alone, best = variants["alone"], variants["sp_sr"]
    mean, _, interval = figures.gained(best).partition(" ")
    if best["gain_ci95_low"] > 0:
        mean = f"**{mean}**"
    return f"{alone['acc_mean']:.2f} → {best['acc_mean']:.2f}<br>{mean} {interval}"


def family(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much of the overview survives when all of its cells are taken for one family."""
    cells = [
        row
        for row in rows
        if row["task"] == "fashion-mnist" and row["variant"] == "sp_sr" and row["pairs"] >= SEEDS
    ]
    p = {number: row["gain_p"] for number, row in enumerate(cells)}
    above = sum(row["gain_ci95_low"] > 0 for row in cells)
    clear = sum(value < 0.05 for value in p.values())
    held = sum(value < 0.05 for value in figures.holm(p).values())
    return (
        f"Of the {len(cells)} gains of the overview {above} have a t interval above zero, "
        f"{clear} an exact\nWilcoxon p below 0.05, and {held} of those p are below 0.05 after "
        f"Holm's correction over all {len(cells)}:\nthe smallest p that {SEEDS} seeds can give is "
        f"{2 / 2**SEEDS:.4f}. No family was declared before these runs,\nso read the intervals "
        "as descriptions.\n"
    )


def over_smooth(runs: Sequence[Mapping[str, Any]]) -> str:
    """What releases gain over smooth pruning without them, as tables."""
    rows = figures.summary(runs, against="sp")
    wanted = ("sp_sr", "random_release")
    return figures.markdown(
        row for row in rows if row["variant"] in wanted and row["gain_mean"] is not None
    )


def write_tables(folder: Path, page: Path) -> None:
    """Make ``summary.json``, the tables of the documentation and their pictures from the runs."""
    import ablations
    import inside
    import scopes
    from pictures import draw

    runs = grid.read(folder)
    rows = figures.summary(runs)
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    images = draw([row for row in rows if row["seeds"] >= SEEDS], page.parent / "images")
    alone = [run for run in runs if run["trial"]["variant"] == "alone"]
    long = figures.summary(alone + grid.read(folder / "long_decays"))
    by_norms = grid.read(folder / "by_norms")
    elsewhere = grid.read(folder / "second_processor")
    text = [
        *complete(folder),
        "",
        "### Against the host alone",
        "",
        "Beside the mean gain: the median of the paired differences and their Hodges-Lehmann",
        "estimate (HL), seeds won and the exact Wilcoxon p, two-sided. Where the mean lies far",
        "from both, a few ruined seeds carry it.",
        "",
        family(rows),
        figures.markdown(rows),
        *[f"![{name}](images/{file})\n" for name, file in images],
        "### Against smooth pruning without releases",
        "",
        over_smooth(runs),
        "### Gate Decorator with long decays",
        "",
        "Against the host alone, as above; but `N` = 43, so that decays outlast the ticks.",
        "",
        figures.markdown(row for row in long if row["variant"] != "alone"),
        *settings.section(),
        "### Our own selection by norms",
        "",
        'Against cutting at once, as above; but `scope="global"`, which was the default before.',
        "",
        figures.markdown(figures.summary(by_norms)),
        'What became of the same runs (+SP+SR) with the default, `scope="width"`:',
        "",
        scopes.table(scopes.on_test_images(runs, by_norms)),
        "### On a second processor",
        "",
        "Our own selection against cutting at once, as above; but on an AMD EPYC:",
        "",
        figures.markdown(figures.summary(elsewhere)),
        "Against smooth pruning without releases, there:",
        "",
        over_smooth(elsewhere),
        "### The goals",
        "",
        goals_table(goals(runs + elsewhere)),
    ]
    fill(page, "study", "\n".join(text))
    fill(page, "overview", overview(rows))
    ablations.write(page.parent)
    inside.write(page)
    scopes.write(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("do", choices=("run", "tables", "list"))
    parser.add_argument("--tier", type=int, action="append", choices=tuple(tiers()))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="the first so many only")
    parser.add_argument("--host", action="append", choices=HOSTS)
    parser.add_argument("--model", action="append")
    parser.add_argument("--budget", action="append", type=float)
    parser.add_argument("--variant", action="append", choices=VARIANTS + CONTROLS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "study.md")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.do == "tables":
        write_tables(given.folder, given.page)
        return
    chosen = [
        trial
        for tier in given.tier or (1,)
        for trial in tiers()[tier]
        if trial.seed < given.seeds
        and trial.host in (given.host or HOSTS)
        and trial.model in (given.model or (trial.model,))
        and trial.budget in (given.budget or (trial.budget,))
        and trial.variant in (given.variant or (trial.variant,))
    ]
    if given.do == "list":
        for trial in chosen:
            state = "done" if result_file(given.folder, trial).is_file() else "to do"
            print(f"{state:6} {trial.name}")
        return
    say = functools.partial(print, flush=True)
    failed = grid.run(chosen, given.folder, given.data_dir, processes=given.processes, say=say)
    for trial, reason in failed:
        print(f"FAILED {trial.name}: {reason}")


if __name__ == "__main__":
    main()
