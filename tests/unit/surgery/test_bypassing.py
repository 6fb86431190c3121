"""Modules leave with their parameters and what optimizers keep of them, and come back."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from decayprune.structures import StructureMap, edits, sums, trace
from decayprune.structures.structure_map import Bypassed
from decayprune.structures.twin import named_tensors
from decayprune.surgery.branches import offer_branches
from decayprune.surgery.bypassing import bypass
from decayprune.surgery.compact import compact
from decayprune.surgery.undo import Undo
from interrupts import everything, interrupt, lines_of
from residual_nets import FusedEncoder, stack

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


X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
ROOMS = ("surgery/bypassing.py", "structures/exact/bypass.py")


@cache
def branches() -> StructureMap:
    """Of the encoder below."""
    model = FusedEncoder()
    return offer_branches(model, trace(model, X), X)


def zeroed_encoder() -> tuple[nn.Module, StructureMap, torch.Tensor, torch.optim.Optimizer]:
    """Two fused layers, a trained step old, whose first two branches have zeros in their gates."""
    torch.manual_seed(0)
    model, structures = FusedEncoder(), branches()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(X).square().sum().backward()
    optimizer.step()
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[branch.structure for branch in structures.branches[:2]]] = True
    tensors = named_tensors(model)
    edits.zero_(edits.picked(sums.labelled(structures), gone, tensors), tensors)
    return model, structures, gone, optimizer


def test_an_interrupt_at_any_line_removes_nothing() -> None:
    def cut(setup: Any) -> None:
        model, structures, gone, optimizer = setup
        compact(model, structures, gone, example_inputs=X, optimizers=[optimizer])

    first = zeroed_encoder()
    for line in lines_of(lambda: cut(first), ROOMS):
        setup = zeroed_encoder()
        model, _, _, optimizer = setup
        modules, before = dict(model.named_modules()), everything(model, optimizer)
        held = list(map(id, optimizer.param_groups[0]["params"]))
        interrupt(lambda setup=setup: cut(setup), ROOMS, line)
        assert dict(model.named_modules()) == modules, line
        assert everything(model, optimizer) == before, line
        assert list(map(id, optimizer.param_groups[0]["params"])) == held, line
