"""Residual branches as structures beside the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from decayprune.structures.structure_map import (
    FIXED,
    Branch,
    Group,
    Operator,
    Refusal,
    Slice,
    StructureMap,
)
from decayprune.structures.tracing.branches import FoundBranch


def with_branches(
    structures: StructureMap,
    found: Sequence[FoundBranch],
    parameters: Mapping[str, Tensor],
    refused: Sequence[Refusal] = (),
) -> StructureMap:
    """The map with a group of one structure for each residual branch, behind all others.

    Args:
        structures: Without branches.
        found: The branches.
        parameters: Of the model, by name.
        refused: Branches that are left alone.
    """
    first = structures.num_structures
    branches = [Branch(first + n, one.bypassed) for n, one in enumerate(found)]
    slices, groups = list(structures.slices), list(structures.groups)
    for branch, one in zip(branches, found, strict=True):
        number = branch.structure
        for name in one.gate:
            whole = torch.full((parameters[name].shape[0],), number, device="cpu")
            slices.append(Slice(name, 0, "gate", whole, torch.ones_like(whole, dtype=torch.bool)))
        layers = tuple(item.module for item in one.bypassed)
        kind = "residual branch of " + ", ".join(name.rpartition(".")[2] for name in layers)
        groups.append(Group(one.name, number, number + 1, layers, kind))
    ones = torch.ones(len(branches), dtype=torch.bool, device="cpu")
    return replace(
        structures,
        num_structures=first + len(branches),
        slices=tuple(slices),
        groups=tuple(groups),
        refusals=(*structures.refusals, *refused),
        operators=tuple(_counted(operator, branches) for operator in structures.operators),
        index=torch.cat(
            [structures.index, torch.zeros(len(branches), dtype=torch.int64, device="cpu")]
        ),
        # What a gate of zeros multiplies is alive, so that it has gradients.
        unpinned=torch.cat([structures.unpinned, ones]),
        branches=tuple(branches),
    )


def _counted(operator: Operator, branches: Sequence[Branch]) -> Operator:
    """The operator, which counts as long as its branch stays."""
    own = (torch.tensor([b.structure], device="cpu") for b in branches if b.holds(operator.layer))
    return replace(operator, labels=(*operator.labels, *own))


def branch_groups(structures: StructureMap) -> Tensor:
    """Which groups are residual branches, bool, shape ``(G,)``."""
    mask = torch.zeros(len(structures.groups), dtype=torch.bool, device="cpu")
    numbers = torch.tensor(
        [b.structure for b in structures.branches], dtype=torch.int64, device="cpu"
    )
    mask[structures.group_of[numbers]] = True
    return mask


def branch_around(structures: StructureMap) -> Tensor:
    """The branch that holds each structure's layers, and is left by none of its slices.

    Returns:
        Structure of the branch, shape ``(S,)``; -1 where a structure lies in no branch.
    """
    around = torch.full((structures.num_structures,), FIXED, device="cpu")
    for branch in structures.branches:
        rows = torch.zeros(structures.num_structures + 1, dtype=torch.bool, device="cpu")
        elsewhere = torch.zeros_like(rows)
        for item in structures.slices:
            if item.role != "gate":
                (rows if branch.holds(item.name) else elsewhere)[item.structure] = True
        around[(rows & ~elsewhere)[:-1]] = branch.structure
    return around
