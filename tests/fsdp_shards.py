"""A script that two processes run: ``python fsdp_shards.py FOLDER`` shards what was pruned."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import decayprune as dp
from stage import Net

WIDTH, STEPS = 13, 3


def pruned() -> Net:
    """The first half of the page: no width of it is a multiple of two processes."""
    torch.manual_seed(0)
    model, example = Net(WIDTH), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        example,
        budget=dp.Budget(macs=0.5),
        schedule=dp.Schedule(stop=2, decay_steps=1),
        rectify=None,
        round_to=None,
    )
    while not pruner.finished:
        model(example).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    pruner.compact()
    return model


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (model.stem, model.a, model.b):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def loaded(folder: Path) -> nn.Module:
    return sharded(dp.load(folder, Net(WIDTH)))


def from_shapes_alone(folder: Path) -> nn.Module:
    """What one device could not hold: shapes, shards, and the weights at last."""
    whole = dp.load(folder, Net(WIDTH))  # only for what a file of weights would hold
    with torch.device("meta"):
        model = Net(WIDTH)
    sharded(dp.reshape(model, dp.structure(whole))).to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, whole.state_dict(), options=options)
    return model


def trained(model: nn.Module, rank: int | None) -> list[list[float]]:
    """Weights after a few steps on a half of each batch, or on the whole of it."""
    model.eval()  # statistics of a batch would be those of a half
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        inputs = torch.randn(8, 3, 8, 8, generator=generator)
        targets = torch.randint(4, (8,), generator=generator)
        half = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
        cross_entropy(model(inputs[half]), targets[half]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [_whole(parameter).flatten().tolist() for parameter in model.parameters()]


def _whole(parameter: Any) -> Tensor:
    found: Tensor = parameter.detach()
    return found.full_tensor() if hasattr(found, "full_tensor") else found


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return "none"


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    if rank == 0:
        dp.save(folder / "pruned", pruned())
    dist.barrier()
    model, example = loaded(folder / "pruned"), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    budget, schedule = dp.Budget(macs=0.5), dp.Schedule(stop=2, decay_steps=1)
    said = {
        "inspect": refusal(lambda: dp.inspect(model, example)),
        "DecayPruner": refusal(
            lambda: dp.DecayPruner(model, optimizer, example, budget=budget, schedule=schedule)
        ),
        "dense": sum(p.numel() for p in Net(WIDTH).parameters()),
        "held": sum(p.to_local().numel() for p in model.parameters()),
        "left": sum(p.numel() for p in model.parameters()),
        "alone": trained(dp.load(folder / "pruned", Net(WIDTH)), None),
        "loaded": trained(model, rank),
        "from shapes alone": trained(from_shapes_alone(folder / "pruned"), rank),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
