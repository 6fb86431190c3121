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
from dataclasses import dataclass
from typing import Any

from names import NAMES, called
from plan import (
    ANEW,
    ARMS,
    AS_TRAINED,
    BUDGETS,
    CONFIRMATIONS,
    DECISIVE,
    HERE,
    IMAGES,
    RESULTS,
    SENSITIVE,
    STEPS,
    TUNING_SEEDS,
    UNTRAINED,
    Confirmation,
    rate,
)
from scores import Cell, Run, Scores, compute, read

from decayprune.app.study.figures import Gain, holm

TITLES = {
    "minilm": "MiniLM-L6 on WordNet's glosses",
    "efficientnet": "EfficientNet-Lite0 on Fashion-MNIST",
}
DECIDING: Cell = (0.25, 1200)
SHORT: Cell = (0.25, 300)
HALF: Cell = (0.5, 300)
HALF_LONG: Cell = (0.5, 1200)
CANDIDATES = ("ridge_abrupt", "ridge_sp_sr", "ridge_handover")
RIVALS_OF_IT = ("torch_pruning_taylor", "ridge_abrupt", "ridge_sp_sr", "abrupt", "sensitive_abrupt")


@dataclass(frozen=True)
class Column:
    """What a file of the docs holds.

    Attributes:
        task: Of its runs.
        cell: Which of them.
        first: Arms that run first: the seeds are those that all of them have; all if left out.
        judged: A way of judging.
    """

    task: str
    cell: Cell
    first: Sequence[str] = ()
    judged: str = AS_TRAINED


COLUMNS = {
    "pretrained": Column("minilm", DECIDING, DECISIVE),
    "pretrained_short": Column("minilm", SHORT),
    "pretrained_half": Column("minilm", HALF),
    "pretrained_half_long": Column("minilm", HALF_LONG),
    "pretrained_images": Column("efficientnet", SHORT, (*IMAGES, *SENSITIVE[:1])),
    "pretrained_images_anew": Column("efficientnet", SHORT, judged=ANEW),
    "pretrained_images_long": Column("efficientnet", DECIDING),
    "pretrained_images_half": Column("efficientnet", HALF),
}
UNTRAINED_COLUMNS = {
    "minilm": "pretrained_untrained",
    "efficientnet": "pretrained_untrained_images",
}
GOALS = {DECIDING: 0.97, SHORT: 0.95}  # shares of the dense accuracy


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


def confirmed(runs: Sequence[Run], test: Confirmation) -> list[str]:
    """What fresh seeds say, as endpoints.md declares it."""
    fresh = Scores([run for run in runs if run["trial"]["seed"] in test.seeds], test.judged)
    cell = (BUDGETS[0], test.steps)
    gains = {
        f"{test.steps:,} steps: {test.arm} over {other}": fresh.gain(cell, test.arm, other)
        for other in test.others
    }
    return gain_table(f"seeds {test.seeds.start} to {test.seeds.stop - 1}", gains)


def both_ways(runs: Sequence[Run]) -> list[str]:
    """Arms judged with running statistics as they were, and taken anew, on the same runs."""
    both = [run for run in runs if run.get(ANEW) is not None]
    ways = (Scores(both), Scores(both, ANEW))
    lines = [
        "| steps | arm | running | taken anew | sensitive_abrupt over it: running | anew | seeds |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for steps, arm in itertools.product(STEPS, ARMS):
        cell, ours = (BUDGETS[0], steps), SENSITIVE[0]
        seeds = len(ways[0].runs(cell, arm))
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


def decided(scores: Scores, column: Column) -> dict[str, list[Run]]:
    """The runs of a column by arm, on its seeds."""
    of_arm = {arm: scores.runs(column.cell, arm) for arm in ARMS}
    if not column.first:
        return of_arm
    done = [set(scores.accuracies(column.cell, arm)) for arm in column.first]
    seeds = set.intersection(*done)
    return {
        arm: [run for run in runs if run["trial"]["seed"] in seeds] for arm, runs in of_arm.items()
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


def untrained(task: str) -> dict[str, Any]:
    """What cuts alone cost, on the seeds that all arms have; empty if there are none.

    Accuracies (%) are by budget, those of each arm and of the dense network in the order of seeds.
    """
    of, (runs, _) = UNTRAINED[task], read(RESULTS[task] / "untrained")
    cells = [(budget, 0) for budget in of.budgets]
    scores = Scores(runs, of.judged)
    ended = {one: scores.accuracies(*one) for one in itertools.product(cells, of.arms)}
    seeds = sorted(set.intersection(*(set(found) for found in ended.values())))
    if not seeds:
        return {}
    dense = {run["trial"]["seed"]: round(100 * run["dense_accuracy"], 3) for run in runs}
    arms = {
        NAMES[arm]: {
            f"{cell[0]:g}": [round(ended[cell, arm][seed], 3) for seed in seeds] for cell in cells
        }
        for arm in of.arms
    }
    return {
        "task": task,
        "judged": of.judged,
        "seeds": seeds,
        "dense": [dense[seed] for seed in seeds],
        "arms": arms,
        "machine": _machine(runs),
    }


def summary(runs: Sequence[Run], column: Column) -> dict[str, Any]:
    """A column for the docs, an entry per arm; empty if nothing of it has run."""
    scores, cell = Scores(runs, column.judged), column.cell
    of_arm = {arm: found for arm, found in decided(scores, column).items() if found}
    if not of_arm:
        return {}
    every = [run for arm in of_arm for run in scores.runs(cell, arm)]
    return {
        "task": column.task,
        "steps": cell[1],
        "arms": {arm: _entry(scores, cell, arm, found) for arm, found in of_arm.items()},
        "timed on": sorted({run.get("timed", run["cpu"]) for run in every}),
        "machine": _machine(every),
    }


def _machine(runs: Sequence[Run]) -> dict[str, Any]:
    """What runs have run on."""
    processors = " and ".join(sorted({run["cpu"] for run in runs}))
    return {"cpu": processors, "threads": 1} | runs[0]["versions"]


def _entry(scores: Scores, cell: Cell, arm: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Of an arm, its runs those of the column."""
    seeds = [run["trial"]["seed"] for run in runs]
    accuracies = scores.accuracies(cell, arm)
    over = {
        other: None if arm == other else scores.gain(cell, arm, other)
        for other in ("abrupt", SENSITIVE[0])
    }
    return {
        "name": called(arm, cell[0]),
        "seeds": seeds,
        "accuracies": [round(accuracies[seed], 3) for seed in seeds],
        "dense": [round(100 * run["dense_accuracy"], 3) for run in runs],
        "macs": statistics.fmean(run["macs"] for run in runs),
        "params": statistics.fmean(run["params"] for run in runs),
        "speedup": statistics.median(run["speedup"] for run in runs),
        "compute": statistics.fmean(compute(run) for run in runs),
        **{f"over {to}": None if one is None else one.words for to, one in over.items()},
    }


def document(task: str, runs: Sequence[Run], left_out: int) -> list[str]:
    """The tables of a task, in Markdown."""
    scores, title = Scores(runs), TITLES[task]
    lines = [f"# {title}", ""]
    lines += [f"{len(runs)} runs; {left_out} of changed code left out. What decides: endpoints.md."]
    if task == "minilm":
        lines += ["", "## Primary endpoints", "", *endpoints(scores)]
    lines += ["", "## Confirmed on fresh seeds"]
    for test in (one for one in CONFIRMATIONS if one.task == task):
        lines += ["", *confirmed(runs, test)]
    if task == "efficientnet":
        lines += ["", "## Statistics of batch normalisation taken anew", "", *both_ways(runs)]
    lines += ["", "## Ranked by sensitivity", "", *beside(scores)]
    for budget, steps in itertools.product(BUDGETS, STEPS):
        lines += ["", f"## {budget:.0%} of the MACs, {steps:,} steps", ""]
        lines += cell_table(scores, (budget, steps))
    return lines


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
    for file_name, column in COLUMNS.items():
        if found := summary(of_task[column.task], column):
            file = HERE.parent / "results" / f"{file_name}.json"
            file.write_text(json.dumps(found, indent=1) + "\n")
            print(file)
    known = {task: rates(task) for task, to in RESULTS.items() if [*to.glob("runs/dense_on-*")]}
    (HERE.parent / "results" / "rates.json").write_text(json.dumps(known, indent=1) + "\n")
    for task, file_name in UNTRAINED_COLUMNS.items():
        if alone := untrained(task):
            file = HERE.parent / "results" / f"{file_name}.json"
            file.write_text(json.dumps(alone, indent=1) + "\n")
    from pictures import overview

    runs = itertools.chain(*decided(Scores(of_task["minilm"]), COLUMNS["pretrained"]).values())
    overview(list(runs), HERE.parents[1] / "docs" / "images")


if __name__ == "__main__":
    main()
