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
from loops import INPUTS, OPTIMIZERS, Net, backward, batches, moves, net, pruner_for

STEPS = 22
ORDERS = ("before the wrap", "after the wrap", "between steps", "inspected")


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


def run(importance: str, **options: Any) -> dict[str, Any]:
    rank = dist.get_rank()
    torch.manual_seed(rank)  # as data augmentation has it
    model: Net = net(seed=rank)  # the wrapper makes them equal
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer, importance=importance, **options)
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


def gradients_agree(model: nn.Module) -> bool:
    """Whether every rank holds the average of the gradients."""
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    theirs = [torch.zeros_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(theirs, ours)
    return all(torch.equal(ours, other) for other in theirs)


def around(order: str, find_unused: bool) -> dict[str, Any]:
    """Something is built from, or looks at, a model around which a wrapper may be already."""
    rank = dist.get_rank()
    model: Net = net(seed=rank)
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer) if order == "before the wrap" else None
    parallel = DistributedDataParallel(model, find_unused_parameters=find_unused)
    if order == "inspected":
        dp.inspect(parallel.module, INPUTS)
    elif order != "before the wrap":
        if order == "between steps":
            backward(parallel, next(iter(batches(1, first=rank))))
        pruner = pruner_for(parallel.module, optimizer)
    agree = []
    for batch in batches(STEPS, first=1000 * rank):
        optimizer.zero_grad()
        backward(parallel, batch)
        agree.append(gradients_agree(model))
        optimizer.step()
        if pruner is not None:
            pruner.step()
    trained = weights(model)
    del parallel
    return {
        "agree": agree,
        "trained": trained,
        "moves": [] if pruner is None else moves(pruner),
        "removed": None if pruner is None else pruner.compact().removed,
    }


def torn() -> dict[str, Any]:
    """One rank's gradients are changed after the backward pass, and it decides otherwise."""
    rank = dist.get_rank()
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer)
    parallel = DistributedDataParallel(model)
    said = "nothing"
    for batch in batches(STEPS, first=1000 * rank):
        optimizer.zero_grad()
        backward(parallel, batch)
        if rank == 1:
            for parameter in model.parameters():
                parameter.grad.mul_(torch.rand_like(parameter) * 20)
        optimizer.step()
        try:
            pruner.step()
        except RuntimeError as error:
            said = str(error)
            break
    return {"said": said, "steps": pruner.steps}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results: dict[str, Any] = {name: run(name) for name in ("magnitude", "random")}
    results["sensitivity"] = run("sensitivity", calibrate=2)  # batches of its own on every rank
    results["torn"] = torn()
    for order in ORDERS:
        for find_unused in (False, True):
            results[f"{order} {find_unused}"] = around(order, find_unused)
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
