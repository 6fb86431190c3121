"""How much faster are half of the MACs? Dense models against what the pruner makes of them.

``python benchmarks/speed.py --write`` cuts each model to half of its multiply-accumulates without
an argument but the budget, and times it beside the dense one, each in its faster memory format,
with one thread and with two. Figures, and the goals that they are held to, are added to the
repeats in ``results/speed.json``. Run it on an idle machine: rows that did not settle say so. Where
others use the machine, ``--processor-time`` counts the time of the processor instead of the
clock's, which means something with one thread only. Nothing is trained: times do not depend on
values.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from repeats import add, load
from torch import Tensor, nn

import decayprune as dp
from decayprune.app.run import models
from decayprune.latency import race
from decayprune.latency.benchmark import cpu_name

RESULTS = Path(__file__).parent / "results" / "speed.json"
BUDGET = 0.5


class Case(NamedTuple):
    """A batch of images for a model, and the speed-up to reach."""

    batch: int
    channels: int
    size: int
    goal: float


CASES = {
    "resnet50": Case(4, 3, 224, 2.05),
    "vgg16_bn": Case(2, 3, 224, 2.0),
    "mobilenet_v2": Case(8, 3, 224, 2.0),
    "resnet20": Case(128, 1, 28, 1.6),
    "vit_b_16": Case(1, 3, 224, 1.8),
}


def dense(name: str) -> nn.Module:
    """A model with random weights."""
    torch.manual_seed(0)
    if name == "resnet20":
        return models.build(name, CASES[name].channels, 10, CASES[name].size)
    model: nn.Module = torchvision.models.get_model(name)
    return model


def halved(name: str, images: Tensor, **options: Any) -> nn.Module:
    """The same with half of its MACs."""
    model = dense(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        images,
        budget=dp.Budget(macs=BUDGET),
        schedule=dp.Schedule(stop=0, decay_steps=1),
        rectify=None,
        **options,
    )
    optimizer.step()  # nothing moves: only the pruner does anything
    pruner.step()
    pruner.compact()
    return model


def measure(name: str, runs: int, threads: list[int]) -> list[dict[str, Any]]:
    """A row for each number of threads."""
    case = CASES[name]
    images = torch.randn(case.batch, case.channels, case.size, case.size)
    ways = {str(way).lower(): halved(name, images[:1], round_to=way) for way in ("auto", None)}
    rows = []
    for number in threads:
        torch.set_num_threads(number)
        for way, pruned in ways.items():
            found = dp.benchmark(dense(name), pruned, images, runs=runs)
            row = {**found.to_dict(), "model": name, "round_to": way, "goal": case.goal}
            rows.append(row)
            print(f"{name}, round_to={way}: {found}\n", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--processor-time", action="store_true")
    chosen = parser.parse_args()
    if chosen.processor_time:
        race.clock_of = lambda device: time.process_time
    loads = [load()]
    rows = [row for name in chosen.models for row in measure(name, chosen.runs, chosen.threads)]
    loads.append(load())
    missed = [
        f"{row['model']} (widths: {row['round_to']}, threads: {row['threads']})"
        for row in rows
        if row["speedup"] < row["goal"]
    ]
    print("missed: " + (", ".join(missed) or "none"))
    if chosen.write:
        machine = {
            "processor": cpu_name(),
            "cores": os.cpu_count(),
            "clock": "processor time"
            if chosen.processor_time or chosen.threads == [1]
            else "wall clock",
            "torch": torch.__version__,
        }
        add(RESULTS, machine, {"load": loads, "rows": rows})


if __name__ == "__main__":
    main()
