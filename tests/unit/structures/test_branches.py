"""Residual branches as structures: their gates, and what they cost."""

from __future__ import annotations

import torch

from decayprune.cost import CostModel
from decayprune.structures import StructureMap, trace
from decayprune.structures.branches import branch_around, branch_groups, with_branches
from decayprune.structures.tracing.branches import residual_branches
from residual_nets import INPUTS, stack


def both() -> tuple[StructureMap, StructureMap]:
    """The map of a stack of two blocks, without and with its branches."""
    model = stack(blocks=2)
    plain = trace(model, INPUTS)
    found, _ = residual_branches(model, INPUTS)
    return plain, with_branches(plain, found, dict(model.named_parameters()))


def test_they_come_behind_all_others_each_a_group() -> None:
    plain, deep = both()
    assert deep.num_structures == plain.num_structures + 2
    assert deep.groups[: len(plain.groups)] == plain.groups
    assert [(g.layer, g.size) for g in deep.groups[-2:]] == [
        ("blocks.0.down", 1),
        ("blocks.1.down", 1),
    ]
    assert branch_groups(deep).nonzero().flatten().tolist() == [3, 4]
    assert not bool(branch_groups(plain).any())


def test_a_gate_is_all_of_the_last_layer_and_is_zeroed_again() -> None:
    plain, deep = both()
    gates = [item for item in deep.slices if item.role == "gate"]
    assert [(item.name, item.dim, item.width) for item in gates[:2]] == [
        ("blocks.0.down.weight", 0, 16),
        ("blocks.0.down.bias", 0, 16),
    ]
    assert all(bool(item.carrier.all()) for item in gates)
    assert deep.unpinned[-2:].tolist() == [True, True]
    assert deep.fingerprint != plain.fingerprint


def test_costs_without_a_branch_are_those_of_the_layers_that_stay() -> None:
    model = stack(blocks=2)
    _, deep = both()
    cost = CostModel(deep, {name: p.shape for name, p in model.named_parameters()})
    kept = cost.sizes.clone()
    assert cost.macs(kept) == 8 * 16 + 2 * (2 * 16 * 32) + 16 * 4
    kept[3], kept[1] = 0, 7  # a branch, and a width inside of it
    assert cost.macs(kept) == 8 * 16 + 2 * 16 * 32 + 16 * 4
    assert cost.params(kept) == sum(p.numel() for p in stack(blocks=1).parameters())
    assert cost.fractions(kept, ["depth"]) == {"depth": 0.5}


def test_widths_inside_of_a_branch() -> None:
    _, deep = both()
    around = branch_around(deep)
    stream, first, second = (deep.groups[n] for n in range(3))
    assert set(around[stream.start : stream.stop].tolist()) == {-1}
    assert set(around[first.start : first.stop].tolist()) == {deep.branches[0].structure}
    assert set(around[second.start : second.stop].tolist()) == {deep.branches[1].structure}


def test_one_that_is_refused_leaves_the_map() -> None:
    _, deep = both()
    left = deep.without({3: "because"})
    assert [b.structure for b in left.branches] == [left.num_structures - 1]
    assert left.branches[0].holds("blocks.1.up.weight")
    assert not left.branches[0].holds("blocks.1.upper")
    assert {item.name for item in left.slices if item.role == "gate"} == {
        "blocks.1.down.weight",
        "blocks.1.down.bias",
    }
    assert torch.equal(left.index[-1:], torch.zeros(1, dtype=torch.int64))
