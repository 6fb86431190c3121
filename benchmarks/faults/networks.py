"""Decay and cut random networks: every one comes out exact, or is refused with a reason.

``python benchmarks/faults/networks.py`` draws networks as the tests do (tests/random_nets.py), and
for each of them an optimizer, a schedule and a budget. The networks are trained for the few steps
of the decay on random targets. Then the outputs before and after the cut are compared in float64.
Networks in which nothing can be pruned (a third: the last value may come straight from the input)
are drawn again, and counted apart.
"""

from __future__ import annotations

import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import begun, keep, options
from torch import Tensor, nn

import decayprune as dp

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from random_nets import random_net

EXACT = 1e-9
OPTIMIZERS: tuple[Any, ...] = (
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    lambda p: torch.optim.AdamW(p, lr=0.001),
)


def pruner_of(
    model: nn.Module, inputs: Tensor, optimizer: torch.optim.Optimizer, draw: random.Random
) -> dp.DecayPruner:
    """A pruner with settings drawn at random."""
    rounds, length = draw.choice([1, 2, 3]), draw.choice([1, 2, 4])
    kind = draw.choice(["macs", "params", "structures"])
    return dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(**{kind: draw.uniform(0.5, 0.95)}),
        schedule=dp.Schedule(stop=3, rounds=rounds, decay_steps=length),
        rectify=draw.choice([None, dp.Rectify()]),
        scope=draw.choice(["global", "local"]),
        slices=draw.choice(["carriers", "all"]),
    )


def outcome(seed: int) -> tuple[str, dict[str, Any]]:
    """Decay and cut the network of a seed: exact, refused or wrong, and the particulars."""
    draw = random.Random(f"settings {seed}")
    model, inputs = random_net(seed)
    optimizer = draw.choice(OPTIMIZERS)(model.parameters())
    try:
        pruner = pruner_of(model, inputs, optimizer, draw)
    except ValueError as error:
        return "refused", {"reason": re.sub(r"[0-9'].*", "...", str(error).splitlines()[0])}
    targets = torch.randn(len(inputs), 2, dtype=torch.float64)
    model.train()
    while not pruner.finished:
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        before = model(inputs)
        report = pruner.compact()
        error = float((model(inputs) - before).abs().max() / before.abs().max())
    return "exact" if error <= EXACT else "wrong", {"error": error, "removed": report.removed}


def main() -> None:
    chosen = options(__doc__.splitlines()[0], 1000)
    torch.set_num_threads(1)
    fresh = {
        "drawn": 0,
        "nothing_to_prune": 0,
        "exact": 0,
        "refused": {},
        "wrong": {},
        "removed": 0,
        "worst_error": 0.0,
    }
    found = begun("networks", chosen, fresh)
    while found["done"] < chosen.count:
        began, number = time.time(), found["drawn"]
        seed = random.Random(f"{chosen.seed} {number}").randrange(2**31)
        torch.manual_seed(seed)
        try:
            verdict, more = outcome(seed)
        except Exception as error:  # whatever it is, it is a fault of ours
            verdict, more = "wrong", {"raised": f"{type(error).__name__}: {error}"[:300]}
        found["drawn"] += 1
        if more.get("reason", "").startswith("Nothing in this model can be pruned"):
            found["nothing_to_prune"] += 1
            continue
        if verdict == "exact":
            found["exact"] += 1
            found["removed"] += more["removed"]
            found["worst_error"] = max(found["worst_error"], more["error"])
        elif verdict == "refused":
            found["refused"][more["reason"]] = found["refused"].get(more["reason"], 0) + 1
        else:
            found["wrong"][str(seed)] = more
            print(seed, more, flush=True)
        found["done"] += 1
        found["seconds"] = round(found["seconds"] + time.time() - began, 2)
        if found["done"] % 20 == 0 or found["done"] == chosen.count:
            keep("networks", found)
            print(found["done"], found["exact"], "exact", found["refused"], flush=True)


if __name__ == "__main__":
    main()
