"""What learning on calibration batches costs, in training steps on the same batches.

Run ``python benchmarks/calibration.py [--write]``: one process, one thread, fp32, processor time,
medians. A training step is a forward and a backward pass and ``SGD(momentum=0.9).step()``. What is
learned is the difference between building a pruner with and without ``calibrate``; the pick is what
the first ``pruner.step()`` takes, in which the consumers are re-fitted, over the same one without.
``--write`` stores the figures in ``benchmarks/results/calibration.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch
from overhead import built, held, optimizer_of, timed
from torch import nn

import decayprune as dp
from decayprune.compensation.batches import OF_A_LOADER
from decayprune.latency.benchmark import cpu_name
from decayprune.structures.example import ExampleInputs, arguments, returned

MODELS = ("resnet50", "convnext_tiny", "bert")
RESULTS = Path(__file__).parent / "results" / "calibration.json"
BATCH, PIXELS, TOKENS, BATCHES = 8, 128, 32, 4
RANKINGS = ("sensitivity", "variance")


def batch_of(name: str) -> ExampleInputs:
    """One batch that a network is trained on."""
    if name == "bert":
        return {"input_ids": torch.randint(30522, (BATCH, TOKENS))}
    return torch.randn(BATCH, 3, PIXELS, PIXELS)


def pruner_of(model: nn.Module, inputs: ExampleInputs, **options: Any) -> dp.DecayPruner:
    """A pruner that cuts to half of the MACs at its first step."""
    optimizer = optimizer_of(model)
    budget, schedule = dp.Budget(macs=0.5), dp.Schedule.at_once()
    return dp.DecayPruner(model, optimizer, inputs, budget=budget, schedule=schedule, **options)


def first_step(pruner: dp.DecayPruner) -> float:
    """Seconds of the step that picks, beside the optimizer's."""
    pruner._session._tried = True  # the trial cut is no part of a step
    pruner._session.optimizers[0].step()
    return timed(pruner.step)[1]


def training_step(name: str, inputs: ExampleInputs, repeats: int) -> float:
    """Median of the seconds of a training step."""
    model = built(name)[0].train()
    optimizer = optimizer_of(model)
    args, kwargs = arguments(inputs)

    def step() -> None:
        optimizer.zero_grad()
        sum(part.sum() for part in returned(model(*args, **kwargs))).backward()
        optimizer.step()

    step()
    return median(timed(step)[1] for _ in range(repeats))


def measure(name: str, repeats: int) -> dict[str, float]:
    """Of one network: in training steps what a batch costs, and the pick; and bytes held."""
    torch.manual_seed(0)
    batches = [batch_of(name) for _ in range(BATCHES)]
    step = training_step(name, batches[0], repeats)
    before, without, _ = _built_and_picked(name, batches[0], repeats)
    found = {"seconds of a step": step}
    for ranking in RANKINGS:
        building, picking, found["held"] = _built_and_picked(
            name, batches[0], repeats, importance=ranking, calibrate=batches
        )
        found[f"a batch, {ranking}"] = (building - before) / BATCHES / step
        found[f"pick, {ranking}"] = (picking - without) / step
    batch, pick = (found[f"{part}, sensitivity"] for part in ("a batch", "pick"))
    return found | {"in all": OF_A_LOADER * batch + pick}


def _built_and_picked(
    name: str, inputs: ExampleInputs, repeats: int, **options: Any
) -> tuple[float, ...]:
    """Medians of the seconds to build and to pick, and of bytes held per byte of parameters."""
    rows = []
    for _ in range(repeats):
        model = built(name)[0].train()
        pruner, building = timed(lambda model=model: pruner_of(model, inputs, **options))
        share = held(pruner) / sum(p.numel() * p.element_size() for p in model.parameters())
        rows.append((building, first_step(pruner), share))
        pruner.detach()
    return tuple(map(median, zip(*rows, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="store the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {}
    for name in MODELS:
        models[name] = measure(name, options.repeats)
        print(name, json.dumps(models[name], indent=1), flush=True)
    if options.write:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        machine = {"cpu": cpu_name(), "threads": 1, **versions}
        shape = {"batch": BATCH, "pixels": PIXELS, "tokens": TOKENS, "batches": OF_A_LOADER}
        document = {"machine": machine, "repeats": options.repeats, **shape, "models": models}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
