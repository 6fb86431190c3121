"""The slow, obviously right twin of cutting: index_select on a copy, one slice at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.structures import StructureMap
from decayprune.structures.exact.swap import become_all


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def gone(index_to_structure: Tensor, removed: set[int]) -> Tensor:
    return torch.tensor([int(s) in removed for s in index_to_structure])


def zeroed(
    model: nn.Module,
    structures: StructureMap,
    removed: set[int],
    roles: tuple[str, ...] = ("row", "affine", "column"),
    carriers_only: bool = False,
) -> nn.Module:
    """A copy of the model with the slices of some structures written as zeros."""
    model = copy.deepcopy(model)
    for item in structures.slices:
        mask = gone(item.structure, removed)
        if carriers_only:
            mask &= item.carrier
        if item.role in roles and mask.any():
            with torch.no_grad():
                tensors(model)[item.name].index_fill_(item.dim, mask.nonzero().flatten(), 0)
    return model


def cut(model: nn.Module, structures: StructureMap, removed: set[int]) -> nn.Module:
    """A copy of the model without some structures."""
    model = copy.deepcopy(model)
    loses = {m for m, _, labels, _ in structures.attributes if gone(labels, removed).any()}
    # norms that count, heads of their own width
    become_all(model, [model.get_submodule(module) for module in loses])
    for item in structures.slices:
        kept = (~gone(item.structure, removed)).nonzero().flatten()
        value = tensors(model)[item.name]
        value.data = value.data.index_select(item.dim, kept)
    for module, attribute, labels, divisor in structures.attributes:
        count = int((~gone(labels, removed)).sum()) // divisor
        if module not in loses:
            continue
        holder = model.get_submodule(module)
        attribute, _, place = attribute.partition(".")
        old = getattr(holder, attribute)
        if isinstance(old, tuple | list):
            items = list(old)
            items[int(place or -1)] = count
            count = type(old)(items)
        setattr(holder, attribute, count)
    return model


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All output tensors in eval mode."""
    model.eval()
    with torch.no_grad():
        if isinstance(inputs, dict):
            out = model(**inputs)
        elif isinstance(inputs, tuple):
            out = model(*inputs)
        else:
            out = model(inputs)
    return torch.utils._pytree.tree_leaves(out)


def error(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference, relative to the largest output."""
    assert [t.shape for t in a] == [t.shape for t in b]
    scale = max(float(t.abs().max()) for t in a)
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / scale
