"""Directions equal torch's own optimizers; inner products and scaling equal loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cases import CASES
from decayprune.hosts import DHSPG
from decayprune.hosts.otov2.products import StructureSums
from decayprune.structures.tracing.trace import trace
from loops import INPUTS
from oto_nets import double_net, train

TWINS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.01), {"weight_decay": 0.01}),
    "heavy ball": (
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.1),
        {"momentum": 0.9, "dampening": 0.1},
    ),
    "adam": (lambda p: torch.optim.Adam(p, 0.05), {"variant": "adam"}),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.05), {"variant": "adamw"}),
}


@pytest.mark.parametrize("name", TWINS)
def test_before_the_partition_it_is_torchs_own_optimizer(name: str) -> None:
    make, options = TWINS[name]
    ours, theirs = double_net(), double_net()
    train(ours, DHSPG(ours, INPUTS.double(), 0.05, start_step=100, **options), 6)
    train(theirs, make(theirs.parameters()), 6)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_parameter_groups_have_their_own_rates() -> None:
    ours, theirs = double_net(), double_net()

    def groups(model: Any) -> list[dict[str, Any]]:
        rest = [p for n, p in model.named_parameters() if not n.startswith("a.")]
        return [{"params": model.a.parameters(), "lr": 0.01}, {"params": rest}]

    optimizer = DHSPG(ours, INPUTS.double(), 0.05, start_step=100, params=groups(ours))
    train(ours, optimizer, 4)
    train(theirs, torch.optim.SGD(groups(theirs), 0.05), 4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["dense", "depthwise", "grouped", "transposed", "prelu"])
def test_products_and_scaling_equal_loops(name: str) -> None:
    model, inputs = CASES[name]()
    structures = trace(model, inputs)
    own = tuple(s for s in structures.slices if s.role in ("row", "affine"))
    structures = replace(structures, slices=own)
    weights = {n: p for n, p in model.named_parameters() if n in {s.name for s in own}}
    moves = {n: torch.randn_like(p) for n, p in weights.items()}
    rates = {n: (0.1 * (i + 1), 0.01 * i) for i, n in enumerate(weights)}
    size = structures.num_structures
    expected = torch.zeros(7, size, dtype=torch.float64)
    for item in own:
        lr, decay = rates[item.name]
        x = weights[item.name].detach().movedim(item.dim, 0)
        d = moves[item.name].movedim(item.dim, 0)
        for index, structure in enumerate(item.structure.tolist()):
            if structure >= 0:
                a, b = x[index].flatten(), d[index].flatten()
                row = [a @ a, a @ b, b @ b, lr * a @ a, lr * a @ b, lr * decay * a @ a]
                expected[:, structure] += torch.stack([*row, torch.tensor(a.numel())])
    sums = StructureSums(structures, weights)
    found = torch.stack([*sums.products(weights, moves, rates), sums.numel.double()])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    shares = torch.rand(size, dtype=torch.float64)
    shares[::2] = 0
    wanted = {}
    for item in own:
        lr, decay = rates[item.name]
        padded = torch.cat([shares, shares.new_zeros(1)])[item.structure]
        x = weights[item.name].detach().movedim(item.dim, 0)
        factor = (1 - lr * padded / (1 - lr * decay)).view(-1, *[1] * (x.dim() - 1))
        wanted[item.name] = (x * factor).movedim(0, item.dim)
    sums.shrink_(weights, shares, rates)
    for key, value in wanted.items():
        torch.testing.assert_close(weights[key].detach(), value, rtol=1e-12, atol=1e-14)
