"""The goals of the comparison, each with the figure that was reached, whatever it says."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from decayprune.app.study.figures import Gain, paired, start

MODELS = {"resnet20": "ResNet-20", "vgg16_slim": "slim VGG-16"}
"""Networks that there are goals for."""
NAMES = MODELS | {"vit_slim": "small ViT"}
HOSTS = {
    "dhspg": ("OTOv2 (DHSPG)", 0.4),
    "depgraph": ("DepGraph", 0.3),
    "depgraph-sl": ("DepGraph, sparse learning", 0.3),
    "gate-decorator": ("Gate Decorator", 0.25),
}
TITLES = {"default": "our own selection", "hesso": "HESSO"} | {h: t for h, (t, _) in HOSTS.items()}
RELEASES = {"sp": "none", "random_release": "random ones"}
SEEDS = 8  # of every cell of the grid; a verdict waits for all of them
HARD, HARD_TARGET = 0.125, 2.0
BUDGETS = (0.5, 0.25, HARD)

Arm = tuple[str, str]
"""Host and variant."""


class Goal(NamedTuple):
    """One goal: a mean gain to reach, with its interval above zero."""

    words: str
    target: float
    found: Gain | None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.found is None or self.found.pairs < SEEDS:
            return "not complete"
        if self.found.low > 0:
            return "reached" if self.found.mean >= self.target else "a gain, below the goal"
        return "a loss" if self.found.high < 0 else "no difference shown"


class _Scores:
    """Test accuracies in percent, by what a run began with."""

    def __init__(self, runs: Iterable[Mapping[str, Any]]) -> None:
        self._of: dict[tuple[str, float, Arm], dict[tuple[int, str], float]] = {}
        for run in runs:
            trial = run["trial"]
            if trial["task"] == "fashion-mnist":
                key = (trial["model"], trial["budget"], (trial["host"], trial["variant"]))
                self._of.setdefault(key, {})[start(run)] = 100 * run["test_accuracy"]

    def gain(self, model: str, budget: float, ours: Arm, theirs: Arm) -> Gain | None:
        """Of one over the other, over the starts that both have; None with fewer than two."""
        found = paired(*(self._of.get((model, budget, arm), {}) for arm in (ours, theirs)))
        return found if found is not None and found.pairs > 1 else None


def goals(runs: Iterable[Mapping[str, Any]]) -> Iterator[Goal]:
    """Every goal, with what the runs say about it so far."""
    scores, ours = _Scores(runs), ("default", "sp_sr")
    for (model, name), budget in itertools.product(MODELS.items(), BUDGETS):
        where = f"{name}, {budget:.1%}"
        for host, (title, target) in HOSTS.items():
            found = scores.gain(model, budget, (host, "sp_sr"), (host, "alone"))
            words = f"{where}: {title} +SP+SR over the host alone"
            yield Goal(words, HARD_TARGET if budget == HARD else target, found)
        for host, (title, _) in HOSTS.items():
            found = scores.gain(model, budget, ours, (host, "sp_sr"))
            yield Goal(f"{where}: our own selection over {title}, both +SP+SR", 0.0, found)
        releases = itertools.product(("default", "depgraph"), RELEASES.items())
        for host, (other, title) in releases:
            found = scores.gain(model, budget, (host, "sp_sr"), (host, other))
            yield Goal(f"{where}: releases over {title}, {TITLES[host]}", 0.0, found)


def markdown(found: Iterable[Goal]) -> str:
    """The goals that were run as a table, and how many were not."""
    missing = 0
    lines = ["| goal | at least | reached (95 %) | seeds | |", "| --- | ---: | ---: | ---: | --- |"]
    for goal in found:
        if goal.found is None:
            missing += 1
            continue
        one = goal.found
        target = f"{goal.target:+.2f}" if goal.target else "above 0"
        lines.append(f"| {goal.words} | {target} | {one.words} | {one.pairs} | {goal.verdict} |")
    more = f"\nOf {missing} more goals (other hosts, budgets, networks) no run is finished.\n"
    return "\n".join(lines) + "\n" + (more if missing else "")
