"""Finished runs of the experiment on a pretrained model, by cell and arm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan import AS_TRAINED, CUT_AT, TIMING_STEPS, WITHIN, timed_as

from decayprune.app.pretrained.task import DENSE_STEPS
from decayprune.app.study.figures import Gain, paired

Run = dict[str, Any]
Cell = tuple[float, int]  # budget, steps


def read(folder: Path) -> tuple[list[Run], int]:
    """Finished runs of committed code, seed by seed, and how many of changed code there are."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    clean = [retimed(run, folder.parent / "timing") for run in runs if not run["changed"]]
    clean.sort(key=lambda run: run["trial"]["seed"])
    return clean, len(runs) - len(clean)


def retimed(run: Run, folder: Path) -> Run:
    """A run with the speed of its arm as measured apart, where one machine has timed all arms."""
    arm, budget = timed_as(run["trial"]["arm"]), run["trial"]["budget"]
    file = folder / f"{arm}-{budget:g}-{TIMING_STEPS}-s0.json"
    if not file.is_file():
        return run
    timed = json.loads(file.read_text())
    return run | {key: timed[key] for key in ("speedup", "milliseconds")} | {"timed": timed["cpu"]}


def compute(run: Run) -> float:
    """What training cost in multiplications, the dense fine-tuning being 1.

    That of the dense network is counted in, and a teacher's forward passes, each a third of a step.
    """
    trial, steps, share = run["trial"], run["steps_trained"], run["macs"]
    arm, dense = trial["arm"], trial.get("dense_steps", DENSE_STEPS)
    if arm.startswith("scratch") and not arm.endswith("distil"):  # a teacher was trained
        whole = 0
    else:
        whole = CUT_AT.get(arm, dense)
    steps -= WITHIN.get(arm, 0)  # one loop counts them as its own
    taught = run["steps_trained"] / 3 if arm.endswith("distil") else 0
    return float((whole + steps * share + taught) / dense)


class Scores:
    """Runs by cell and arm; accuracies in percent, by seed.

    Args:
        runs: Finished ones; those that were not judged this way are left out.
        judged: How, which is the key of the accuracy.
    """

    def __init__(self, runs: Sequence[Run], judged: str = AS_TRAINED) -> None:
        self._judged = judged
        self._of: dict[tuple[Cell, str], list[Run]] = {}
        for run in (run for run in runs if run.get(judged) is not None):
            trial = run["trial"]
            self._of.setdefault(((trial["budget"], trial["steps"]), trial["arm"]), []).append(run)

    def runs(self, cell: Cell, arm: str) -> list[Run]:
        """Of an arm in a cell."""
        return self._of.get((cell, arm), [])

    def accuracies(self, cell: Cell, arm: str) -> dict[int, float]:
        """By seed."""
        runs = self.runs(cell, arm)
        return {run["trial"]["seed"]: 100 * run[self._judged] for run in runs}

    def gain(self, cell: Cell, ours: str, theirs: str) -> Gain | None:
        """Of one arm over another, paired by seed."""
        return paired(self.accuracies(cell, ours), self.accuracies(cell, theirs))
