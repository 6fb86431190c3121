"""Modules leave with their parameters and what optimizers keep of them, and come back."""

from __future__ import annotations

import torch

from decayprune.structures.structure_map import Bypassed
from decayprune.surgery.bypassing import bypass
from decayprune.surgery.undo import Undo
from interrupts import everything
from residual_nets import stack

BRANCH = [
    Bypassed("blocks.0.norm", False, 0),
    Bypassed("blocks.0.up", False, 0),
    Bypassed("blocks.0.down", True, 0),
]


def test_what_left_is_forgotten_and_comes_back() -> None:
    model = stack(blocks=2)
    optimizer = torch.optim.Adam(
        [{"params": list(model.blocks[0].parameters())}, {"params": list(model.head.parameters())}]
    )
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    modules = dict(model.named_modules())
    before, undo = everything(model, optimizer), Undo()
    bypass(undo, model, BRANCH, [optimizer])
    assert not list(model.blocks[0].parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]
    assert set(optimizer.state) == set(model.head.parameters())
    x = torch.randn(3, 8)
    assert torch.equal(model.blocks[0](x), x)
    undo.run()
    assert dict(model.named_modules()) == modules
    assert everything(model, optimizer) == before


def test_a_parameter_that_others_hold_too_stays() -> None:
    model = stack(blocks=2)
    model.blocks[1].up.weight = model.blocks[0].up.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bypass(Undo(), model, BRANCH, [optimizer])
    held = optimizer.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert any(p is model.blocks[1].up.weight for p in held)
