"""Tables and pictures of the experiment on a pretrained model, from the JSON of finished runs.

    python benchmarks/pretrained/tables.py

Writes ``tables.md`` and the pictures of each task beside its runs; and for the docs
``images/trained.svg`` and ``benchmarks/results/pretrained.json``, the column that decides, from
which ``docs/tables.py`` makes the README's table. Runs of changed code are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from names import NAMES, called
from plan import (
    ARMS,
    BUDGETS,
    CONFIRMED,
    DECISIVE,
    FRESH,
    HERE,
    IMAGES,
    RESULTS,
    SENSITIVE,
    STEPS,
    TIMING_STEPS,
    TUNING_SEEDS,
    rate,
    timed_as,
)

from decayprune.app.study.figures import Gain, holm, paired

Run = dict[str, Any]
Cell = tuple[float, int]  # budget, steps

TITLES = {
    "minilm": "MiniLM-L6 on WordNet's glosses",
    "efficientnet": "EfficientNet-Lite0 on Fashion-MNIST",
}
DECIDING: Cell = (0.25, 1200)
CANDIDATES = ("ridge_abrupt", "ridge_sp_sr", "ridge_handover")
RIVALS_OF_IT = ("torch_pruning_taylor", "ridge_abrupt", "ridge_sp_sr", "abrupt", "sensitive_abrupt")
COLUMNS: dict[str, tuple[str, Cell, Sequence[str]]] = {  # of the docs: task, cell, what ran first
    "pretrained": ("minilm", DECIDING, DECISIVE),
    "pretrained_short": ("minilm", (0.25, 300), ()),
    "pretrained_half": ("minilm", (0.5, 300), ()),
    "pretrained_images": ("efficientnet", (0.25, 300), (*IMAGES, *SENSITIVE[:1])),
    "pretrained_images_long": ("efficientnet", (0.25, 1200), ()),
    "pretrained_images_half": ("efficientnet", (0.5, 300), ()),
    "pretrained_images_anew": ("efficientnet", (0.25, 300), ()),
}
ANEW = "accuracy_normalised_anew"
GOALS = {(0.25, 1200): 0.97, (0.25, 300): 0.95}  # shares of the dense accuracy


def read(folder: Path) -> tuple[list[Run], int]:
    """Finished runs of committed code, and how many of changed code there are."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    clean = [retimed(run, folder.parent / "timing") for run in runs if not run["changed"]]
    return clean, len(runs) - len(clean)


def retimed(run: Run, folder: Path) -> Run:
    """A run with the speed of its arm as measured apart, where one machine has timed all arms."""
    arm, budget = timed_as(run["trial"]["arm"]), run["trial"]["budget"]
    file = folder / f"{arm}-{budget:g}-{TIMING_STEPS}-s0.json"
    if not file.is_file():
        return run
    timed = json.loads(file.read_text())
    return run | {key: timed[key] for key in ("speedup", "milliseconds")} | {"timed": timed["cpu"]}


class Scores:
    """Runs by cell and arm; accuracies in percent, by seed.

    Args:
        runs: Finished ones.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._of: dict[tuple[Cell, str], list[Run]] = {}
        for run in runs:
            trial = run["trial"]
            self._of.setdefault(((trial["budget"], trial["steps"]), trial["arm"]), []).append(run)

    def runs(self, cell: Cell, arm: str) -> list[Run]:
        """Of an arm in a cell."""
        return self._of.get((cell, arm), [])

    def accuracies(self, cell: Cell, arm: str) -> dict[int, float]:
        """By seed."""
        return {run["trial"]["seed"]: 100 * run["accuracy"] for run in self.runs(cell, arm)}

    def gain(self, cell: Cell, ours: str, theirs: str) -> Gain | None:
        """Of one arm over another, paired by seed."""
        return paired(self.accuracies(cell, ours), self.accuracies(cell, theirs))


def cell_table(scores: Scores, cell: Cell) -> list[str]:
    """A line per arm: what stays, how fast, how accurate, and the gain over cutting at once."""
    lines = [
        "| arm | MACs | params | time | accuracy | of dense | over abrupt (95 %) | median, HL "
        "| won, p | released |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in ARMS:
        runs = scores.runs(cell, arm)
        if not runs:
            continue
        mean = {
            key: statistics.fmean(run[key] for run in runs)
            for key in ("macs", "params", "accuracy", "dense_accuracy", "released")
        }
        apart = [100 * run["accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(apart):.2f}" if len(runs) > 1 else ""
        found = None if arm == "abrupt" else scores.gain(cell, arm, "abrupt")
        lines.append(
            f"| {arm} | {mean['macs']:.1%} | {mean['params']:.1%} "
            f"| {statistics.median(run['speedup'] for run in runs):.2f}x "
            f"| {100 * mean['accuracy']:.2f}{spread} "
            f"| {mean['accuracy'] / mean['dense_accuracy']:.1%} | {_gain_cells(found)} "
            f"| {mean['released']:.0f} |"
        )
    return lines if len(lines) > 2 else ["Not run."]


def _gain_cells(found: Gain | None) -> str:
    if found is None:
        return " |  | "
    return (
        f"{found.words} | {found.median:+.2f}, {found.shift:+.2f} "
        f"| {found.won} of {found.pairs}, {found.p:.4f}"
    )


def chosen(task: str, arms: Sequence[str]) -> str | None:
    """The best of some arms on held-out glosses, seeds of tuning; None if one was not run."""
    found = {}
    for arm in arms:
        lr = rate(task, arm)
        if lr is None:
            return None
        files = [
            RESULTS[task] / "tuning" / f"{arm}-{BUDGETS[0]:g}-{STEPS[0]}-s{seed}-lr{lr:g}.json"
            for seed in TUNING_SEEDS
        ]
        if not all(file.is_file() for file in files):
            return None
        found[arm] = statistics.fmean(json.loads(f.read_text())["accuracy"] for f in files)
    return max(found, key=lambda arm: found[arm])


def endpoints(scores: Scores) -> list[str]:
    """The five primary endpoints, as endpoints.md declares them."""
    candidate = chosen("minilm", CANDIDATES)
    rival = chosen("minilm", ("torch_pruning", "torch_pruning_taylor"))
    smooth = chosen("minilm", ("ridge_sp_sr", "ridge_handover"))
    pairs = [
        (candidate, rival),
        (candidate, "last_layers"),
        (candidate, "scratch_total"),
        (candidate, "abrupt"),
        (smooth, "ridge_abrupt"),
    ]
    gains = {
        f"{number}. {ours or 'not chosen yet'} over {theirs or 'not chosen yet'}": (
            scores.gain(DECIDING, ours, theirs) if ours and theirs else None
        )
        for number, (ours, theirs) in enumerate(pairs, 1)
    }
    lines = gain_table("endpoint", gains)
    for cell, share in GOALS.items():
        runs = scores.runs(cell, candidate) if candidate else []
        reached = "not run"
        if runs:
            parts = [run["accuracy"] / run["dense_accuracy"] for run in runs]
            seeds = f"{sum(part >= share for part in parts)} of {len(parts)} seeds"
            reached = f"{statistics.fmean(parts):.1%}, {seeds}"
        lines += ["", f"Goal: {share:.0%} of the dense accuracy after {cell[1]} steps: {reached}."]
    return lines


def confirmed(runs: Sequence[Run]) -> list[str]:
    """What the fresh seeds of the images say, as endpoints.md declares it."""
    fresh = normalised_anew([run for run in runs if run["trial"]["seed"] in FRESH])
    gains = {f"{ours} over {other}": fresh.gain(DECIDING, ours, other) for ours, other in CONFIRMED}
    return gain_table("fresh seeds", gains)


def normalised_anew(runs: Sequence[Run]) -> Scores:
    """Those that were judged with statistics of their end as well, by these."""
    anew = [run | {"accuracy": run[ANEW]} for run in runs if run.get(ANEW) is not None]
    return Scores(anew)


def both_ways(runs: Sequence[Run]) -> list[str]:
    """Arms judged with running statistics as they were, and taken anew, on the same runs."""
    kept = Scores([run for run in runs if run.get(ANEW) is not None])
    ways = (kept, normalised_anew(runs))
    lines = [
        "| steps | arm | running | taken anew | sensitive_abrupt over it: running | anew | seeds |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for steps, arm in itertools.product(STEPS, ARMS):
        cell, ours = (BUDGETS[0], steps), SENSITIVE[0]
        seeds = len(kept.runs(cell, arm))
        if not seeds:
            continue
        means = [f"{statistics.fmean(way.accuracies(cell, arm).values()):.2f}" for way in ways]
        gains = [None if arm == ours else way.gain(cell, ours, arm) for way in ways]
        words = ["" if one is None else one.words for one in gains]
        cells = [f"{steps:,}", arm, *means, *words, str(seeds)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def gain_table(about: str, gains: Mapping[str, Gain | None]) -> list[str]:
    """A line per gain; Holm's family is all of them, and one that is missing counts as p = 1."""
    adjusted = holm({name: 1.0 if g is None else g.p for name, g in gains.items()})
    lines = [
        f"| {about} | gain (95 %) | median, HL | won, p | p after Holm |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, found in gains.items():
        after = "" if found is None else f"{adjusted[name]:.4f}"
        lines.append(f"| {name} | {_gain_cells(found)} | {after} |")
    return lines


def decided(scores: Scores, cell: Cell, first: Sequence[str]) -> dict[str, list[Run]]:
    """A column, on the seeds that all arms that run first have finished; all if there are none."""
    if not first:
        return {arm: scores.runs(cell, arm) for arm in ARMS}
    done = set.intersection(*(set(scores.accuracies(cell, arm)) for arm in first))
    return {
        arm: [run for run in scores.runs(cell, arm) if run["trial"]["seed"] in done] for arm in ARMS
    }


def beside(scores: Scores) -> list[str]:
    """What the endpoints do not hold: the ranking that was added later, against what was there."""
    lines = [
        "| gain, described | gain (95 %) | median, HL | won, p |",
        "| --- | ---: | ---: | ---: |",
    ]
    for steps, arm, other in itertools.product(STEPS, SENSITIVE, RIVALS_OF_IT):
        found = scores.gain((BUDGETS[0], steps), arm, other) if arm != other else None
        if found is not None:
            lines.append(f"| {steps:,} steps: {arm} over {other} | {_gain_cells(found)} |")
    return lines


def rates(task: str) -> dict[str, Any]:
    """Accuracy (%) on held-out examples by arm and learning rate, mean over the seeds of tuning."""
    found: dict[str, dict[float, list[float]]] = {}
    for file in RESULTS[task].glob("tuning/*.json"):
        run = json.loads(file.read_text())
        by_rate = found.setdefault(run["trial"]["arm"], {})
        by_rate.setdefault(run["trial"]["lr"], []).append(100 * run["accuracy"])
    arms = {
        NAMES[arm]: {f"{lr:g}": round(statistics.fmean(found[arm][lr]), 2) for lr in sorted(by)}
        for arm, by in sorted(found.items())
        if arm in NAMES
    }
    dense = RESULTS[task].glob("runs/dense_on-*.json")  # goes on as it was fine-tuned
    return {"dense_lr": json.loads(next(dense).read_text())["trial"]["lr"], "arms": arms}


def summary(scores: Scores, cell: Cell, first: Sequence[str]) -> dict[str, Any]:
    """A column for the docs, an entry per arm."""
    rows = {}
    for arm, runs in decided(scores, cell, first).items():
        if not runs:
            continue
        over = {
            other: None if arm == other else scores.gain(cell, arm, other)
            for other in ("abrupt", SENSITIVE[0])
        }
        rows[arm] = {
            "name": called(arm, cell[0]),
            "seeds": sorted(run["trial"]["seed"] for run in runs),
            "accuracies": [round(100 * run["accuracy"], 3) for run in runs],
            "dense": [round(100 * run["dense_accuracy"], 3) for run in runs],
            "macs": statistics.fmean(run["macs"] for run in runs),
            "params": statistics.fmean(run["params"] for run in runs),
            "speedup": statistics.median(run["speedup"] for run in runs),
            **{f"over {to}": None if one is None else one.words for to, one in over.items()},
        }
    if not rows:
        return {}
    every = [run for arm in rows for run in scores.runs(cell, arm)]
    one, timed = every[0], sorted({run.get("timed", run["cpu"]) for run in every})
    machine = {"cpu": one["cpu"], "threads": 1, **one["versions"]}
    machine["cpu"] = " and ".join(sorted({run["cpu"] for run in every}))
    return {"steps": cell[1], "arms": rows, "timed on": timed, "machine": machine}


def document(task: str, runs: Sequence[Run], left_out: int) -> list[str]:
    """The tables of a task, in Markdown."""
    scores, title = Scores(runs), TITLES[task]
    lines = [f"# {title}", ""]
    lines += [f"{len(runs)} runs; {left_out} of changed code left out. What decides: endpoints.md."]
    if task == "minilm":
        lines += ["", "## Primary endpoints", "", *endpoints(scores)]
    else:
        lines += ["", "## Confirmed on fresh seeds", "", *confirmed(runs)]
        lines += ["", "## Statistics of batch normalisation taken anew", "", *both_ways(runs)]
    lines += ["", "## Ranked by sensitivity", "", *beside(scores)]
    for budget, steps in itertools.product(BUDGETS, STEPS):
        lines += ["", f"## {budget:.0%} of the MACs, {steps:,} steps", ""]
        lines += cell_table(scores, (budget, steps))
    return lines


def column(file_name: str, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """What a file of the docs holds; empty if nothing of it has run."""
    task, cell, first = COLUMNS[file_name]
    judged = normalised_anew if file_name.endswith("_anew") else Scores
    found = summary(judged(runs[task]), cell, first)
    return {"task": task} | found if found else {}


def write(task: str) -> list[Run]:
    """The tables and pictures of a task, beside its runs, which are returned."""
    from pictures import draw

    folder = RESULTS[task]
    runs, left_out = read(folder / "runs")
    lines = [*document(task, runs, left_out), "", "## Pictures", ""]
    lines += [f"![{about}]({name})" for about, name in draw(runs, TITLES[task], folder)]
    (folder / "tables.md").write_text("\n".join(lines) + "\n")
    print(folder / "tables.md")
    return runs


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    of_task = {task: write(task) for task in TITLES}
    for file_name in COLUMNS:
        found = column(file_name, of_task)
        if found:
            file = HERE.parent / "results" / f"{file_name}.json"
            file.write_text(json.dumps(found, indent=1) + "\n")
            print(file)
    known = {task: rates(task) for task, to in RESULTS.items() if [*to.glob("runs/dense_on-*")]}
    (HERE.parent / "results" / "rates.json").write_text(json.dumps(known, indent=1) + "\n")
    from pictures import overview

    runs = itertools.chain(*decided(Scores(of_task["minilm"]), DECIDING, DECISIVE).values())
    overview(list(runs), HERE.parents[1] / "docs" / "images")


if __name__ == "__main__":
    main()
