"""Does ``Budget(latency=...)`` keep its word? Models are cut to a latency and then timed.

``python benchmarks/latency_budget.py --write`` adds a repeat to ``results/latency_budget.json``.
With one thread the time of the processor counts, but others on the machine are still in its caches:
the load is written down. ``--where onnxruntime`` and ``--where compiled`` are budgets of the time
there, each with a file of its own. BERT needs the package transformers, onnxruntime also onnx and
onnxscript, compiling a C++ compiler and minutes for each model.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from repeats import add, load
from torch import nn

import decayprune as dp
from decayprune.deploy.target import form_of
from decayprune.latency.benchmark import cpu_name
from decayprune.latency.race import Race, fastest, interval, paired

MODELS = ("resnet50", "mobilenet_v2", "convnext_tiny", "vit_b_16", "bert")
TARGETS = (0.5,)
RESULTS = Path(__file__).parent / "results" / "latency_budget.json"


def built(name: str, size: int) -> tuple[nn.Module, Any]:
    """A model with random weights, and an example of its inputs."""
    torch.manual_seed(0)
    if name == "bert":
        from transformers import BertConfig, BertModel

        return BertModel(BertConfig()), {"input_ids": torch.randint(30522, (1, 128))}
    side = 224 if name == "vit_b_16" else size
    return torchvision.models.get_model(name), torch.randn(1, 3, side, side)


def timed(dense: nn.Module, model: nn.Module, inputs: Any, where: str) -> tuple[float, Any]:
    """How many times as fast a model is, and the interval of that."""
    if where == "torch":
        found = dp.benchmark(dense, model, inputs, runs=15)
        return found.speedup, found.interval
    form = form_of(where, torch.device("cpu"))
    before, after = (form.variants(each.eval(), inputs) for each in (dense, model))
    with torch.inference_mode():
        race = Race.on(form.device, 15, min_run_ms=20.0)
        times = race.times([*before, *after], len(before))
    ratios = paired(fastest(times[: len(before)]), fastest(times[len(before) :]))
    return median(ratios), interval(ratios)


def measure(
    name: str, target: float, size: int, where: str, round_to: int | None
) -> dict[str, Any]:
    (dense, inputs), (model, _) = built(name, size), built(name, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    began = time.perf_counter()
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(latency=target),
        schedule=dp.Schedule(stop=0, decay_steps=1),
        rectify=None,
        round_to=round_to,
        target=None if where == "torch" else where,
    )
    seconds = time.perf_counter() - began
    optimizer.step()  # nothing moves: only the pruner does anything
    pruner.step()
    expected = pruner.remaining()["latency"]
    report = pruner.compact()
    speedup, ends = timed(dense, model, inputs, where)
    return {
        "model": name,
        "target": target,
        "estimate": round(expected, 4),
        "measured": round(1 / speedup, 4),
        "interval": ends and [round(1 / end, 4) for end in reversed(ends)],
        "macs": round(report.macs_after / report.macs_before, 4),
        "error": round(1 / speedup / target - 1, 4),
        "build_s": round(seconds, 2),
        **({} if round_to is None else {"round_to": round_to}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--targets", nargs="*", type=float, default=TARGETS)
    parser.add_argument("--size", type=int, default=224, help="Side of the images.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--where", default="torch", choices=["torch", "compiled", "onnxruntime"])
    parser.add_argument("--any-width", action="store_true", help="Where the target has fast ones.")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    round_to = 1 if chosen.any_width else None
    rows = []
    loads = [load()]
    for name, target in product(chosen.models, chosen.targets):
        try:
            rows.append(measure(name, target, chosen.size, chosen.where, round_to))
        except ValueError as error:  # out of reach
            rows.append({"model": name, "target": target, "refused": str(error)})
        print(rows[-1], flush=True)
    loads.append(load())
    errors = [abs(row["error"]) for row in rows if "error" in row]
    if errors:
        print(f"off by {median(errors):.1%} in the median, {max(errors):.1%} at most")
    if chosen.write:
        machine = {
            "processor": cpu_name(),
            "threads": chosen.threads,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "size": chosen.size,
            "clock": "processor time" if chosen.threads == 1 else "wall clock",
        }
        form = "" if chosen.where == "torch" else f"_{chosen.where}"
        file = RESULTS.with_stem(f"{RESULTS.stem}{form}")
        add(file, machine, {"load": loads, "rows": rows})


if __name__ == "__main__":
    main()
