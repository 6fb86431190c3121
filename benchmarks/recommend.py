"""Is what ``dp.benchmark`` recommends worth following? Half the MACs, cut with and without it.

``python benchmarks/recommend.py --write`` cuts each model to half of its multiply-accumulates as it
comes, asks ``dp.benchmark`` which ``round_to`` and which memory format suit this machine, cuts a
second copy with that ``round_to``, and times it in that format. The ideal is the ratio of the MACs;
the goal is 0.95 of it. One thread and its processor time, so that others on the machine disturb
little; figures in ``results/recommend.json``.
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
from torch import Tensor, nn

import decayprune as dp
from decayprune.latency.benchmark import Latency, benchmark, cpu_name

MODELS = ("resnet50", "vgg16_bn")
GOAL = 0.95
RESULTS = Path(__file__).parent / "results" / "recommend.json"


def halved(name: str, inputs: Tensor, round_to: int | None) -> nn.Module:
    """A model of torchvision with half of its MACs; nothing is trained."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs[:1],
        budget=dp.Budget(macs=0.5),
        schedule=dp.Schedule(stop=0, decay_steps=1),
        rectify=None,
        scope="global",
        round_to=round_to,
    )
    optimizer.step()  # nothing moves: only the pruner does anything
    pruner.step()
    pruner.compact()
    return model


def share(found: Latency, memory_format: str) -> float:
    """Speed-up in a memory format, both models in it, as a share of the ideal."""
    plain = (found.before_ms, found.after_ms)
    before, after = plain if memory_format == "contiguous" else found.channels_last or plain
    return before / after / found.ideal


def measure(name: str, inputs: Tensor, runs: int) -> dict[str, Any]:
    """Figures of one model."""
    dense = torchvision.models.get_model(name)
    asked = dp.benchmark(dense, halved(name, inputs, None), inputs, runs=runs)
    unit, best = asked.round_to, asked.memory_format
    rounded = dp.benchmark(dense, halved(name, inputs, unit), inputs, runs=runs)
    after = rounded.after_ms
    if best == "channels_last" and rounded.channels_last is not None:
        after = rounded.channels_last[1]
    return {
        "model": name,
        "round_to": unit,
        "memory_format": best,
        "ideal": round(rounded.ideal, 4),
        "as it comes": round(share(asked, "contiguous"), 4),
        "recommended": round(share(rounded, best), 4),
        "against the dense model as it comes": round(rounded.before_ms / after / rounded.ideal, 4),
        "figures": {"as it comes": asked.to_dict(), "recommended": rounded.to_dict()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    benchmark.time = SimpleNamespace(perf_counter=time.process_time)
    inputs = torch.randn(chosen.batch_size, 3, chosen.size, chosen.size)
    load = [os.getloadavg()[0]]
    rows = []
    for name in chosen.models:
        rows.append(measure(name, inputs, chosen.runs))
        print({k: v for k, v in rows[-1].items() if k != "figures"}, flush=True)
    load.append(os.getloadavg()[0])
    if chosen.write:
        machine = {
            "processor": cpu_name(),
            "cores": os.cpu_count(),
            "threads": 1,
            "clock": "processor time",
            "torch": torch.__version__,
            "batch_size": chosen.batch_size,
            "size": chosen.size,
            "load": " to ".join(f"{value:.1f}" for value in load),
        }
        result = {"machine": machine, "goal": GOAL, "rows": rows}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
