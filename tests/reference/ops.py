"""The slow, obviously right twins of the vectorised operations: one structure at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from decayprune.structures import StructureMap


def pieces(
    structures: StructureMap, structure: int, *, carriers: bool = False
) -> list[tuple[str, int, int]]:
    """Every (tensor, dimension, index) that belongs to one structure, running statistics aside."""
    found = []
    for item in structures.slices:
        if item.role == "buffer":
            continue
        for index, owner in enumerate(item.structure.tolist()):
            if owner == structure and (bool(item.carrier[index]) or not carriers):
                found.append((item.name, item.dim, index))
    return found


def inner(
    structures: StructureMap,
    structure: int,
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    *,
    carriers: bool = False,
) -> float:
    total = 0.0
    for name, dim, index in pieces(structures, structure, carriers=carriers):
        a, b = left[name].detach().select(dim, index), right[name].detach().select(dim, index)
        total += float((a.double() * b.double()).sum())
    return total


def norm(
    structures: StructureMap,
    structure: int,
    tensors: Mapping[str, Tensor],
    *,
    carriers: bool = False,
) -> float:
    return inner(structures, structure, tensors, tensors, carriers=carriers) ** 0.5


def scale(
    structures: StructureMap,
    ids: Sequence[int],
    factors: Sequence[float],
    tensors: Mapping[str, Tensor],
    *,
    carriers: bool = False,
) -> dict[str, Tensor]:
    """Copies of the tensors with the slices of some structures multiplied."""
    result = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for structure, factor in zip(ids, factors, strict=True):
        for name, dim, index in pieces(structures, structure, carriers=carriers):
            result[name].select(dim, index).mul_(factor)
    return result


def zero(
    structures: StructureMap, ids: Sequence[int], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Copies of the tensors with exact zeros in the slices of some structures."""
    result = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for structure in ids:
        for name, dim, index in pieces(structures, structure):
            with torch.no_grad():
                result[name].select(dim, index).fill_(0)
    return result
