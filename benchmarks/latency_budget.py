"""Does ``Budget(latency=...)`` keep its word? Models are cut to a latency and then timed.

``python benchmarks/latency_budget.py --write`` stores ``results/latency_budget.json``. With
``--processor-time`` both the table and the check count the time of the processor instead of the
clock's: where others use the machine at the same time (its load is written down).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchvision

import decayprune as dp
from decayprune.latency import estimate, race
from decayprune.latency.benchmark import cpu_name

MODELS = ("resnet18", "mobilenet_v2", "vgg11_bn")
TARGETS = (0.3, 0.5, 0.7)
RESULTS = Path(__file__).parent / "results" / "latency_budget.json"


def measure(name: str, target: float, round_to: int | None, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    dense, model = (torchvision.models.get_model(name) for _ in range(2))
    inputs = torch.randn(1, 3, size, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    began = time.perf_counter()
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(latency=target),
        schedule=dp.Schedule(stop=0, decay_steps=1),
        rectify=None,
        scope="global",
        round_to=round_to,
    )
    built = time.perf_counter() - began
    optimizer.step()  # nothing moves: only the pruner does anything
    pruner.step()
    estimate = pruner.remaining()["latency"]
    report = pruner.compact()
    found = dp.benchmark(dense, model, inputs, runs=15)
    return {
        "model": name,
        "round_to": round_to,
        "target": target,
        "estimate": round(estimate, 4),
        "measured": round(found.after_ms / found.before_ms, 4),
        "macs": round(report.macs_after / report.macs_before, 4),
        "error": round(found.after_ms / found.before_ms / target - 1, 4),
        "build_s": round(built, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--size", type=int, default=128, help="Side of the images.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.processor_time:
        race.time = estimate.time = SimpleNamespace(perf_counter=time.process_time)
    rows = []
    load = [os.getloadavg()[0]]
    for name in arguments.models:
        for target in TARGETS:
            for round_to in (None, 8):
                try:
                    rows.append(measure(name, target, round_to, arguments.size))
                except ValueError as error:  # out of reach
                    rows.append({"model": name, "round_to": round_to, "target": target})
                    rows[-1]["refused"] = str(error)
                print(rows[-1], flush=True)
    worst = max(row["error"] for row in rows if "error" in row)
    load.append(os.getloadavg()[0])
    print(f"worst excess over the budget: {worst:.1%}")
    if arguments.write:
        machine = {
            "processor": cpu_name(),
            "threads": arguments.threads,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "size": arguments.size,
            "clock": "processor time" if arguments.processor_time else "wall clock",
            "load": " to ".join(f"{value:.1f}" for value in load),
        }
        result = {"machine": machine, "worst": worst, "rows": rows}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
