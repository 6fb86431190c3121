r"""Does ``round_to="auto"`` cost accuracy? The same pruning to any width and to fast ones, paired.

    python benchmarks/rounding.py run --seeds 0-7 --dense ~/.cache/decayprune/rounding
    python benchmarks/rounding.py table

Fixed before the first counted run:

- **Networks and data**: the study's ResNet-20 and slim VGG-16 on Fashion-MNIST. Images have half of
  their size (14 pixels) and 20,000 of them train, so that a run takes half a minute of one thread.
- **Pair**: both arms begin with the seed's dense network (4 epochs at 0.1) and see the same
  batches in the same order for one epoch at 0.05, half a cosine, in which the default pruner
  (smooth, with releases, the schedule of ``Schedule.for_run``) meets ``Budget(macs=...)``; it cuts
  as soon as it has finished, and what is left of the epoch is recovery. The arms differ in
  ``round_to`` alone: None against ``"auto"``, for a processor of 16 lanes (AVX-512), whose units
  are the coarsest that a processor has.
- **Cells**: both networks at 50 and 25 % of the MACs, seeds 0 to 7.
- **Endpoint**: accuracy on the 10,000 test images after the last step, read once, in points,
  auto - None. It is *harmful* in a cell if the 95 % t interval of the mean difference lies below
  zero or the mean is below -0.2.
- **Beside it**: MACs that are left, and the speed-up over the dense network, by the time of the
  processor, batches of 128 on one thread, each network in its faster memory format (of seed 0).

After the first seed and a half the arm ``auto`` had lost 0.3 points, in six pairs, and others
(networks of seed 0, other batches; not counted) showed it for both of its parts. It was mended:
eight steps of every width instead of four, and half the pull of time. Files named ``before`` are
of the old one. The second one (files named ``second``) lost 0.26 points in 20 pairs, with three
cells below -0.2: harmful. The third has sixteen steps of every width, and time pulls no more (MACs
are spent where they cost least accuracy). Its verdict is that of 32 pairs; it was fixed before its
first run, and if a cell is harmful, ``None`` becomes the default.
The table's line of all cells was not declared: it describes, and its pairs share dense networks.

A finished run is one JSON file in ``results/rounding/``; the script may be stopped at any time.
``table`` writes ``results/rounding.json``, of which ``docs/tables.py`` makes the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp
from decayprune.app.run import data as datasets
from decayprune.app.run.batches import Augmentation, Batches, MemoryBatches
from decayprune.app.run.data import Data
from decayprune.app.run.loop import evaluate
from decayprune.app.run.settings import DATA_DIR
from decayprune.app.run.surroundings import commit, machine, versions
from decayprune.app.study import figures
from decayprune.app.study.dense import dense, steps_of, train
from decayprune.app.study.plan import build
from decayprune.app.study.trial import Training, Trial
from decayprune.checkpoint.atomic import write_atomically

HERE = Path(__file__).parent / "results"
RUNS = HERE / "rounding"
PIXELS, TRAINED_ON = 14, 20_000
MODELS = ("resnet20", "vgg16_slim")
BUDGETS = (0.5, 0.25)
TARGET = dp.Hardware(block=16, macs_per_value=0)  # the units of "cpu" with AVX-512, time unasked
FORMER = ("second", "before")  # auto as it was
ARMS: dict[str, dict[str, Any]] = {
    "any": {"round_to": None},
    "auto": {"round_to": "auto", "target": TARGET},
}
BASE = Trial(
    task="fashion-mnist",
    model=MODELS[0],
    dense=Training(epochs=4, lr=0.1),
    training=Training(epochs=1, lr=0.05),
    limit=TRAINED_ON,
    bf16=False,
)


@dataclass(frozen=True)
class Run:
    """One network, pruned once.

    Attributes:
        model: Its name.
        budget: MACs that may remain.
        seed: What everything random follows from.
        arm: One of :data:`ARMS`.
    """

    model: str
    budget: float
    seed: int
    arm: str

    @property
    def file(self) -> Path:
        """Where its figures are, or will be."""
        return RUNS / f"{self.model}-{self.budget:g}-{self.arm}-{self.seed}.json"

    @property
    def trial(self) -> Trial:
        """The same in the words of the study."""
        return BASE.with_(
            model=self.model, budget=self.budget, seed=self.seed, options=ARMS[self.arm]
        )


def small(images: Tensor) -> Tensor:
    """Images, uint8 ``(n, 1, 28, 28)``, at :data:`PIXELS`."""
    return F.adaptive_avg_pool2d(images.float(), PIXELS).round().to(torch.uint8)


def shrunk(data: Data, seed: int) -> Data:
    """Fashion-MNIST at half the size, the first :data:`TRAINED_ON` images to train on."""

    def half(batches: Batches, **changes: Any) -> MemoryBatches:
        if not isinstance(batches, MemoryBatches):
            raise TypeError(f"expected images in memory, found {type(batches).__name__}")
        return replace(batches, images=small(batches.images), **changes)

    augment = Augmentation(flip=True, shift=1)
    train = half(data.train, seed=seed, augment=augment)
    train = replace(train, images=train.images[:TRAINED_ON], targets=train.targets[:TRAINED_ON])
    return replace(data, train=train, validation=None, test=half(data.test), image_size=PIXELS)


def prune(model: nn.Module, trial: Trial, data: Data) -> dict[str, Any]:
    """Prune within one epoch, cut as soon as possible, go on to its end: what is left."""
    steps = steps_of(trial, trial.training, data)
    example = torch.zeros(1, 1, PIXELS, PIXELS)
    pruning, report = build(trial, model, example, steps), None
    made = train(model, trial, data, trial.training, steps, pruning=pruning)
    for _ in made:
        if report is None and pruning.host.finished:
            report = pruning.host.compact()
    if report is None:
        raise SystemExit(f"{trial.name}: the budget was not met within {steps} steps.")
    return {
        "macs": report.macs_after / report.macs_before,
        "params": report.params_after / report.params_before,
        "released": sum(event.kind == "release" for event in pruning.host.events),
        "widths": [after for _, _, after in report.widths],
    }


def run(one: Run, data: Data, folder: Path) -> dict[str, Any]:
    """All figures of a run."""
    begun, trial = time.process_time(), one.trial
    model, digest = dense(trial, data, folder, DATA_DIR, print)
    whole = copy.deepcopy(model)
    found = prune(model, trial, data)
    return {
        "model": one.model,
        "budget": one.budget,
        "seed": one.seed,
        "arm": one.arm,
        "dense_digest": digest,
        "dense_accuracy": evaluate(whole, data.test, trial.bf16),
        "accuracy": evaluate(model, data.test, trial.bf16),
        **found,
        **(speed(whole, model, data) if one.seed == 0 else {}),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "versions": versions(),
        "machine": machine(torch.get_num_threads()),
        "commit": commit(),
    }


def speed(whole: nn.Module, model: nn.Module, data: Data) -> dict[str, Any]:
    """How much faster it is; widths of another seed are nearly the same."""
    found = dp.benchmark(whole, model, next(data.train.epoch(0))[0], runs=7)
    return {"speedup": found.speedup, "settled": found.settled}


def wanted(seeds: list[int], models: list[str], budgets: list[float]) -> Iterator[Run]:
    """Seed by seed: what is half done is a comparison on fewer seeds."""
    for seed in seeds:
        for model in models:
            for budget in budgets:
                for arm in ARMS:
                    yield Run(model, budget, seed, arm)


def run_all(seeds: list[int], models: list[str], budgets: list[float], folder: Path) -> None:
    """What is not there yet."""
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    full = datasets.load("fashion-mnist", DATA_DIR, BASE.batch_size, 0)
    for one in wanted(seeds, models, budgets):
        if one.file.is_file():
            continue
        found = run(one, shrunk(full, one.seed), folder)
        text = json.dumps(found, indent=1) + "\n"
        write_atomically({one.file: lambda path, text=text: path.write_text(text, "utf-8")})
        print(f"{one.file.stem}: {found['accuracy']:.2%}, {found['macs']:.1%}", flush=True)


def row(
    cell: tuple[str, float] | None, runs: list[dict[str, Any]], auto: str = "auto"
) -> dict[str, Any] | None:
    """What rounding does in a cell, or in all of them; None before there are two pairs.

    Args:
        cell: Model and budget; None for all.
        runs: Of all arms.
        auto: The arm that is compared with any width.
    """
    own = [r for r in runs if cell in (None, (r["model"], r["budget"]))]
    arms = {
        name: {(r["model"], r["budget"], r["dense_digest"]): r for r in own if r["arm"] == arm}
        for name, arm in (("any", "any"), ("auto", auto))
    }
    both = sorted(arms["any"].keys() & arms["auto"].keys())
    if len(both) < 2:
        return None
    accuracy = {arm: {d: 100 * of[d]["accuracy"] for d in both} for arm, of in arms.items()}
    gain = figures.paired(accuracy["auto"], accuracy["any"])
    found: dict[str, Any] = {
        "model": cell[0] if cell else "all of them",
        "budget": cell[1] if cell else None,
        "auto": auto,
        "pairs": gain.pairs,
        "won": gain.won,
        "difference": gain.mean,
        "low": gain.low,
        "high": gain.high,
    }
    for arm, of in arms.items():
        for name in ("accuracy", "macs", "params", "speedup"):
            values = [of[d][name] for d in both if name in of[d]]
            found[f"{name}_{arm}"] = sum(values) / len(values) if values and cell else None
    found["dense_accuracy"] = sum(arms["any"][d]["dense_accuracy"] for d in both) / len(both)
    return found


def table() -> None:
    """Summarise the runs that are there."""
    runs = [json.loads(file.read_text("utf-8")) for file in sorted(RUNS.glob("*.json"))]
    cells = [(m, b) for m in MODELS for b in BUDGETS]
    found = [row(cell, runs, arm) for arm in ("auto", *FORMER) for cell in (*cells, None)]
    rows = [one for one in found if one is not None]
    text = json.dumps({"machine": runs[0]["machine"], "rows": rows}, indent=1) + "\n"
    (HERE / "rounding.json").write_text(text, "utf-8")
    for one in rows:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in one.items()}))


def _range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=("run", "table"))
    parser.add_argument("--seeds", type=_range, default=list(range(8)))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--dense", type=Path, default=Path.home() / ".cache/decayprune/rounding")
    chosen = parser.parse_args()
    if chosen.do == "run":
        run_all(chosen.seeds, chosen.models, chosen.budgets, chosen.dense)
    else:
        table()


if __name__ == "__main__":
    main()
