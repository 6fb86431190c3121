"""The network of ``loops.py`` in float64, and its zero-invariant groups written out by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.method.lifecycle import LifecycleState
from loops import INPUTS, backward, batches, net
from reference.oto import Structure

X = INPUTS.double()
ROWS = {
    12: ["stem.0.weight", "stem.1.weight", "stem.1.bias", "b.0.weight", "b.1.weight", "b.1.bias"],
    10: ["a.0.weight", "a.1.weight", "a.1.bias"],
    8: ["c.weight", "c.bias"],
}
GROUPS: list[list[Structure]] = [
    [[(name, row) for name in names] for row in range(size)] for size, names in ROWS.items()
]


def double_net(seed: int = 1) -> nn.Module:
    return net(seed).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for batch in batches(steps, first):
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()


def kinds(host: Any) -> Counter[str]:
    return Counter(event.kind for event in host.events)


def pruned(host: Any) -> set[tuple[int, int]]:
    """(size of the group, row) of everything that is pruned."""
    state: LifecycleState = host.lifecycle
    ids = state.pruned.nonzero().flatten().tolist()
    return {(host.structures.groups[host.structures.group_of[i]].size, place(host, i)) for i in ids}


def place(host: Any, structure: int) -> int:
    return structure - host.structures.groups[host.structures.group_of[structure]].start


def own_norms(host: Any, *, carriers: bool = False) -> Tensor:
    """Norm of the rows and affine of every structure, or of its carriers."""
    total = torch.zeros(host.structures.num_structures, dtype=torch.float64)
    parameters = dict(host.model.named_parameters())
    for item in host.structures.slices:
        if item.role in ("row", "affine"):
            values = parameters[item.name].detach().movedim(item.dim, 0)
            for index, structure in enumerate(item.structure.tolist()):
                if structure >= 0 and (bool(item.carrier[index]) or not carriers):
                    total[structure] += float(values[index].double().square().sum())
    return total.sqrt()
