"""Runs many trials: skips what exists, one process per core, and holds every pair to be fair.

A trial is finished when its file is in ``runs/``. One that broke leaves its reason in ``failed/``
and is tried again by the next call; a pair that differs in more than what is being tested counts
as broken.
"""

from __future__ import annotations

import json
import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from decayprune.app.study.dense import dense
from decayprune.app.study.job import Job, read_data, result_file
from decayprune.app.study.trial import CONTROLS, Trial
from decayprune.checkpoint.atomic import write_atomically

SAME = ("steps", "dense_digest", "macs_before", "params_before")
"""What the two runs of a pair have exactly in common."""

MORE, LESS = 0.01, 0.03
"""How far the MACs of a pair may lie apart, relative to the host alone.

Less speaks against who has it, and widths that are multiples of something come no closer.
"""


def unfair(run: dict[str, Any], alone: dict[str, Any]) -> str | None:
    """Why two runs are no pair, or None.

    Args:
        run: Figures of the one with smooth pruning, or of a control.
        alone: Figures of the host alone.
    """
    for name in SAME:
        if run[name] != alone[name]:
            return f"{name} is {run[name]!r}, but {alone[name]!r} for the host alone"
    apart = run["macs_after"] / alone["macs_after"] - 1
    if not -LESS <= round(apart, 9) <= MORE:
        allowed = f"{-LESS:+.0%} to {MORE:+.0%}"
        return f"it ends with {apart:+.1%} of the MACs of the host alone (allowed: {allowed})"
    return None


def run_trial(trial: Trial, folder: Path, data_dir: Path, say: Callable[[str], None]) -> str:
    """Run one trial unless its file exists.

    Args:
        trial: Which.
        folder: Of the study.
        data_dir: Where files of data sets are.
        say: Told what goes on.

    Returns:
        ``"exists"``, ``"done"``, or why it failed.
    """
    file = result_file(folder, trial)
    failed = folder / "failed" / file.name
    if file.is_file():
        return "exists"
    try:
        figures = Job(trial, folder, data_dir, say).run()
        problem = None
        alone = result_file(folder, trial.with_(variant="alone"))
        if alone.is_file() and trial.variant != "longer":
            problem = unfair(figures, json.loads(alone.read_text()))
    except (RuntimeError, ValueError) as error:  # of this trial alone; the others go on
        figures = {"trial": trial.to_dict(), "traceback": traceback.format_exc()}
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        _write(failed, {**figures, "problem": problem})
        return problem
    _write(file, figures)
    failed.unlink(missing_ok=True)
    return "done"


def run(
    trials: Iterable[Trial],
    folder: Path,
    data_dir: Path,
    *,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> list[tuple[Trial, str]]:
    """Run trials, the hosts alone first, and report those that failed.

    Args:
        trials: Which; those that exist are skipped.
        folder: Of the study.
        data_dir: Where files of data sets are.
        processes: How many at a time, one thread each.
        say: Told what goes on.

    Returns:
        The trials that failed, each with its reason.
    """
    waiting = [trial for trial in trials if not result_file(folder, trial).is_file()]
    say(f"{len(waiting)} trials to run")
    failed = []
    # Dense networks first, then what pairs are measured against, so that no two processes train
    # the same network and every pair can be checked when its second run ends.
    networks = list({trial.dense_name: trial for trial in waiting if trial.dense}.values())
    alone = [trial for trial in waiting if trial.variant == "alone"]
    rest = [trial for trial in waiting if trial.variant != "alone"]
    for task, stage in ((_dense, networks), (_one, alone), (_one, rest)):
        for trial, outcome in _each(task, stage, folder, data_dir, processes, say):
            say(f"{trial.dense_name if task is _dense else trial.name}: {outcome}")
            if outcome not in ("done", "exists"):
                failed.append((trial, outcome))
    return failed


def _each(
    task: Callable[[Trial, Path, Path, Callable[[str], None]], str],
    trials: Sequence[Trial],
    folder: Path,
    data_dir: Path,
    processes: int,
    say: Callable[[str], None],
) -> Iterable[tuple[Trial, str]]:
    if processes == 1 or len(trials) < 2:
        for trial in trials:
            yield trial, task(trial, folder, data_dir, say)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_one_thread) as pool:
        futures = {pool.submit(task, t, folder, data_dir, _silent): t for t in trials}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _one(trial: Trial, folder: Path, data_dir: Path, say: Callable[[str], None]) -> str:
    return run_trial(trial, folder, data_dir, say)


def _dense(trial: Trial, folder: Path, data_dir: Path, say: Callable[[str], None]) -> str:
    dense(trial, read_data(trial, data_dir), folder, data_dir, say)
    return "done"


def _silent(line: str) -> None:
    pass


def _one_thread() -> None:
    torch.set_num_threads(1)


def _write(file: Path, figures: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=1) + "\n"
    write_atomically({file: lambda path: path.write_text(text, encoding="utf-8")})


def read(folder: Path) -> list[dict[str, Any]]:
    """All finished runs of a study, in the order of their names.

    Args:
        folder: Of the study.
    """
    return [json.loads(file.read_text()) for file in sorted((folder / "runs").glob("*.json"))]


def with_controls(trials: Iterable[Trial]) -> list[Trial]:
    """Trials and, for each of ours with everything on, its controls.

    Args:
        trials: Of the three variants.
    """
    found = list(trials)
    for trial in list(found):
        if trial.variant == "sp_sr" and trial.host == "default":
            found += [trial.with_(variant=control) for control in CONTROLS]
    return found
