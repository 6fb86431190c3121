"""Branches are offered if a twin without them computes the same as one whose gates are zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import Lambda
from decayprune.structures import StructureMap, trace
from decayprune.structures.twin import named_tensors
from decayprune.surgery.branches import MOST_BATCHES, branch_effects, offer_branches
from decayprune.surgery.cut import cut
from decayprune.surgery.undo import Undo
from residual_nets import BRANCHES, INPUTS, residual_net, stack


def offered(model: nn.Module, inputs: torch.Tensor) -> StructureMap:
    return offer_branches(model, trace(model, inputs), inputs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", sorted(BRANCHES))
def test_a_model_without_branches_is_the_one_whose_gates_are_zero(
    name: str, training: bool
) -> None:
    model, inputs = residual_net(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    structures = offered(model, inputs)
    assert len(structures.branches) == BRANCHES[name]
    model.train(training)
    for some in (structures.branches[:1], structures.branches[1:], structures.branches):
        gone = torch.zeros(structures.num_structures, dtype=torch.bool)
        gone[[branch.structure for branch in some]] = True
        tensors, undo = named_tensors(model), Undo()
        for item in structures.slices:
            if item.role == "gate" and bool(gone[item.structure].any()):
                undo.keep_values(tensors[item.name])
                tensors[item.name].data.zero_()
        expected, before = model(inputs).detach(), dict(model.named_modules())
        cut(undo, model, structures, gone)
        assert torch.equal(model(inputs), expected)
        assert not any(b.holds(n) for b in some for n, _ in model.named_parameters())
        undo.run()
        assert dict(model.named_modules()) == before


def test_what_fails_without_its_modules_is_refused_with_the_reason() -> None:
    model = Lambda(
        lambda m, x: m.head(x + m.down(m.up(x)[:, : m.up.out_features // 2])),
        up=nn.Linear(8, 16),
        down=nn.Linear(8, 8),
        head=nn.Linear(8, 2),
    )
    found = offered(model, INPUTS)
    assert not found.branches
    assert "fails" in found.refusals[-1].reason
    assert "a residual branch is removed" in found.refusals[-1].reason


def test_a_layer_that_zeros_do_not_close_is_no_gate() -> None:
    model = Lambda(
        lambda m, x: m.head(x + F.gelu(m.up(x), approximate="tanh").clamp(max=-0.01)),
        up=nn.Linear(8, 8),
        head=nn.Linear(8, 2),
    )
    assert not offered(model, INPUTS).branches


def test_ignored_layers_stay() -> None:
    model = stack(blocks=2)
    found = offer_branches(model, trace(model, INPUTS), INPUTS, ["blocks.1"])
    assert [b.bypassed[-1].module for b in found.branches] == ["blocks.0.down"]
    assert (found.refusals[-1].layer, found.refusals[-1].reason) == ("blocks.1.down", "ignored")


def test_what_a_branch_is_worth_is_what_changes_without_it() -> None:
    model = stack(blocks=2).double().eval().requires_grad_(False)
    structures = offered(model, INPUTS.double())
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(4, 8, dtype=torch.float64, generator=generator) for _ in range(3)]
    expected = torch.zeros(2, dtype=torch.float64)
    for x in data:
        hidden, whole = model.stem(x), model(x)
        for place, block in ((0, model.blocks[1]), (1, model.blocks[0])):
            change = model.head(block(hidden)) - whole
            expected[place] += float(change.square().sum() / whole.square().sum())
    before = dict(model.named_modules())
    assert torch.allclose(branch_effects(model, structures, data), expected, rtol=1e-10)
    assert dict(model.named_modules()) == before


def test_few_batches_are_read() -> None:
    model = stack(blocks=2)
    read = iter([INPUTS + 1] * 100)
    branch_effects(model, offered(model, INPUTS), read)
    assert len(list(read)) == 100 - MOST_BATCHES
