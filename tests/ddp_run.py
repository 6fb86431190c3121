"""What each of two processes does that torchrun starts: see ``unit/test_distributed.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import decayprune as dp
from loops import OPTIMIZERS, Net, backward, batches, moves, net, pruner_for

STEPS = 22


def steps(
    parallel: nn.Module, optimizer: torch.optim.Optimizer, pruner: dp.DecayPruner, first: int
) -> None:
    """Every rank sees its own data; now and then it accumulates before it steps."""
    rank = dist.get_rank()
    for number, batch in enumerate(batches(STEPS, first=1000 * rank + first)):
        if number % 5 == 3:
            with parallel.no_sync():
                backward(parallel, batch, 0.5)
        backward(parallel, batch)
        pruner.observe()
        nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[list[float]]:
    return [p.detach().flatten().tolist() for p in model.parameters()]


def refusal(pruner: dp.DecayPruner) -> str:
    try:
        pruner.compact()
    except RuntimeError as error:
        return str(error)
    return "none"


def run(importance: str) -> dict[str, Any]:
    rank = dist.get_rank()
    torch.manual_seed(rank)  # as data augmentation has it
    model: Net = net(seed=rank)  # the wrapper makes them equal
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer, importance=importance)
    parallel = DistributedDataParallel(model)
    steps(parallel, optimizer, pruner, first=0)
    refused, whole = refusal(pruner), model.stem[0].weight.shape[0]
    trained = weights(model)
    del parallel
    report = pruner.compact()
    parallel = DistributedDataParallel(model)
    steps(parallel, optimizer, pruner, first=STEPS)
    inputs: Tensor = next(iter(batches(1)))[0]
    return {
        "moves": moves(pruner),
        "trained": trained,
        "refused": refused,
        "whole": whole,
        "macs": report.macs_after / report.macs_before,
        "error": report.max_rel_error,
        "fine-tuned": weights(model),
        "shape": list(model.eval()(inputs).shape),
    }


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {importance: run(importance) for importance in ("magnitude", "random")}
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
