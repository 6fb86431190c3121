"""What each choice is worth: one change at a time against one base, with a picture.

    python benchmarks/paper/ablations.py run --seeds 100-103     # stop and rerun at will
    python benchmarks/paper/ablations.py page                    # docs/ablations.md and its picture

The base is ResNet-20 at half size, cut to 12.5 % of its MACs within 350 steps by smooth pruning
without releases, scores compared over the model (``pruner.scope=global``), else with the library's
defaults (``probe.py`` says how a run is made). Every figure is an accuracy on training images that
were held out, so that choices made here leave test images and the seeds of the comparison alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from probe import Probe, go, interval, numbers

from decayprune.app.study.figures import Gain, paired

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
RUNS = HERE / "results" / "probe.jsonl"
N = 35
SCOPE = "pruner.scope=global"
"""In every change that names no other, as the questions were asked."""
LEVERS = "idea=benchmarks/paper/levers.py"

# Question -> label -> changes to the base.
QUESTIONS: dict[str, dict[str, str]] = {
    "An abrupt cut, and how long a decay (N, of 350 steps)": {
        "N = 1 (abrupt)": "rectify=none schedule.decay_steps=1",
        "N = 18": "rectify=none schedule.decay_steps=18",
        "N = 70": "rectify=none schedule.decay_steps=70",
        "N = 140": "rectify=none schedule.decay_steps=140",
    },
    "How many rounds, over how long": {
        "3 rounds in 50 steps, N = 35": "rectify=none schedule.rounds=3 schedule.stop=50",
        "10 rounds in 175 steps, N = 35": "rectify=none schedule.rounds=10 schedule.stop=175",
        "10 abrupt rounds in 175 steps": (
            "rectify=none schedule.rounds=10 schedule.stop=175 schedule.decay_steps=1"
        ),
    },
    "What it waits for": {
        "selection after 35 steps": "rectify=none schedule.start=35 schedule.stop=36",
        "selection after 70 steps": "rectify=none schedule.start=70 schedule.stop=71",
        "the decay waits while the loss is double": f"rectify=none x.wait=2 {LEVERS}",
    },
    "What shrinks, and how": {
        "all slices": "rectify=none pruner.slices=all",
        "cosine": "rectify=none pruner.decay=cosine",
    },
    "What is selected": {
        "same share of every layer": "rectify=none pruner.scope=local",
        "random, same shares": "rectify=none pruner.scope=local pruner.importance=random",
        "L1 magnitude": "rectify=none pruner.importance=magnitude_l1",
        "Taylor": "rectify=none pruner.importance=taylor",
        "BN scale": "rectify=none pruner.importance=bn_scale",
    },
    "What is released": {
        "tournament, 5 % extra": "rectify=tournament rectify.extra=0.05",
        "tournament, 10 % extra": "rectify=tournament rectify.extra=0.1",
        "random release, 10 % extra": "rectify=random rectify.extra=0.1",
        "tournament, 30 % extra": "rectify=tournament rectify.extra=0.3",
        "random release, 30 % extra": "rectify=random rectify.extra=0.3",
        "the lowest magnitude leaves after all, 30 % extra": "rectify=score rectify.extra=0.3",
        "tournament, 10 % extra, judged at N / 4": (
            "rectify=tournament rectify.extra=0.1 rectify.judge_at=0.25"
        ),
        "tournament, 10 % extra, by the ranks in work and in score": (
            f"rectify=tournament rectify.extra=0.1 x.borda=1 {LEVERS}"
        ),
        "3 rounds in 50 steps, tournament, 10 % extra": (
            "rectify=tournament rectify.extra=0.1 schedule.rounds=3 schedule.stop=50"
        ),
        "the same, what was released never again": (
            "rectify=tournament rectify.extra=0.1 schedule.rounds=3 schedule.stop=50 "
            "rectify.cool_down=1000"
        ),
        "thresholds": "rectify=thresholds",
    },
    "Releases on a random selection (against it)": {
        "random selection": "rectify=none pruner.importance=random",
        "the same, tournament with 30 % extra": (
            "rectify=tournament rectify.extra=0.3 pruner.importance=random"
        ),
        "the same, random release of 30 % extra": (
            "rectify=random rectify.extra=0.3 pruner.importance=random"
        ),
    },
    "The learning rate, abrupt and smooth": {
        "learning rate 0.02, N = 1": "rectify=none lr=0.02 schedule.decay_steps=1",
        "learning rate 0.02": "rectify=none lr=0.02",
        "learning rate 0.1, N = 1": "rectify=none lr=0.1 schedule.decay_steps=1",
        "learning rate 0.1": "rectify=none lr=0.1",
        "learning rate falls over N, then again": f"rectify=none x.restart=35 {LEVERS}",
        "momentum forgotten at the cut": f"rectify=none x.fresh_momentum=1 {LEVERS}",
    },
    "Help from elsewhere, abrupt and smooth": {
        "dense model as teacher, N = 1": "rectify=none teacher=1 schedule.decay_steps=1",
        "dense model as teacher": "rectify=none teacher=1",
        "BN statistics measured anew": "rectify=none bn=50",
    },
}


class Row(NamedTuple):
    """One change, with what it is worth."""

    question: str
    label: str
    changes: str
    accuracies: list[float]
    gain: Gain


def probes() -> Iterator[tuple[str, str, str]]:
    """Question, label, changes; the base first."""
    yield "Base", f"N = {N}, one round, carriers, linear", "rectify=none"
    for question, choices in QUESTIONS.items():
        for label, changes in choices.items():
            yield question, label, changes


def rows(found: dict[str, dict[int, float]]) -> list[Row]:
    """What every change that was run is worth, paired by seed with the base."""
    base = found.get(_key("rectify=none"), {})
    result = []
    for question, label, changes in probes():
        mine = found.get(_key(changes), {})
        worth = paired(mine, base)
        if worth is not None:
            values = [mine[seed] for seed in sorted(mine.keys() & base.keys())]
            result.append(Row(question, label, changes, values, worth))
    return result


def _probe(changes: str) -> Probe:
    return Probe().with_([SCOPE, *changes.split()])


def _key(changes: str | dict[str, Any]) -> str:
    settings = vars(_probe(changes)) if isinstance(changes, str) else changes
    return json.dumps(settings, sort_keys=True, default=list)


def read() -> dict[str, dict[int, float]]:
    """Accuracy by settings and seed."""
    found: dict[str, dict[int, float]] = {}
    for line in RUNS.read_text().splitlines():
        run = json.loads(line)
        found.setdefault(_key(run["settings"]), {})[run["seed"]] = run["accuracy"]
    return found


def draw(table: list[Row], file: Path) -> None:
    """Gains with their intervals, one line per change."""
    shown = [row for row in table if row.question != "Base"]
    figure, axis = plt.subplots(figsize=(7.4, 0.27 * len(shown) + 1.1))
    for place, row in enumerate(shown):
        worth = row.gain
        colour = "#2f6fde" if worth.low > 0 else "#d9480f" if worth.high < 0 else "#8a8f98"
        half = 0.0 if worth.pairs < 3 else worth.high - worth.mean
        axis.errorbar(worth.mean, place, xerr=half, fmt="o", color=colour, markersize=4, capsize=2)
    axis.axvline(0, color="#8a8f98", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [row.label for row in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("points above the base, with 95 % intervals")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"svg.hashsalt": file.name}):
        figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def page(table: list[Row]) -> str:
    """The page of the documentation."""
    lines = [
        "# Ablations",
        "",
        "Made by `python benchmarks/paper/ablations.py page` from "
        "`benchmarks/paper/results/probe.jsonl`; do not edit.",
        "",
        *(__doc__ or "").strip().splitlines()[5:],
        "",
        "![Gains of the changes](images/ablations.svg)",
        "",
    ]
    for question in dict.fromkeys(row.question for row in table):
        lines += [f"## {question}", ""]
        lines += ["| change | settings | accuracy | against the base (95 %) | seeds |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for row in table:
            if row.question == question:
                worth = row.gain
                cells = [row.label, f"`{row.changes}`", f"{interval(row.accuracies)[0]:.2f}"]
                cells += ["" if question == "Base" else worth.words, str(worth.pairs)]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def write(docs: Path = DOCS) -> None:
    """Make the page of ablations and its picture from the runs."""
    table = rows(read())
    draw(table, docs / "images" / "ablations.svg")
    (docs / "ablations.md").write_text(page(table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("do", choices=("run", "page"))
    parser.add_argument("--seeds", type=numbers, default=[100, 101, 102, 103])
    parser.add_argument("--only", default="", help="questions that contain this text")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.do == "run":
        for seed in given.seeds:
            for question, label, changes in probes():
                if question == "Base" or given.only.lower() in question.lower():
                    row = go(_probe(changes), seed, RUNS, cached=True)
                    print(f"{row['accuracy']:.2f}  seed {seed}  {question}: {label}", flush=True)
        return
    write()


if __name__ == "__main__":
    main()
