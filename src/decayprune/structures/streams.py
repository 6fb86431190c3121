"""Residual streams: the widths that all blocks of a transformer share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decayprune.structures.structure_map import Slice, StructureMap

_PRODUCERS = 3  # an embedding and one block of two branches; a gated layer alone has two


def residual_streams(model: nn.Module, structures: StructureMap) -> Tensor:
    """Which groups are the width of a residual stream.

    That is: three layers or more add to it, and a normalisation over the width itself (layer norm,
    RMS norm) reads it. The streams of convolutional networks with batch norm are none.

    Args:
        model: The model.
        structures: Its structures.

    Returns:
        Shape ``(G,)``, bool.
    """
    normalised = torch.zeros(len(structures.groups), dtype=torch.bool, device="cpu")
    for item in structures.slices:
        module = item.name.rpartition(".")[0]
        if item.role == "affine" and _over_the_width(model.get_submodule(module)):
            normalised[list(_groups_of(structures, item))] = True
    if not normalised.any():
        return normalised
    producers: list[set[str]] = [set() for _ in structures.groups]
    for item in structures.slices:
        module, _, kind = item.name.rpartition(".")
        if item.role == "row" and kind != "bias":
            for group in _groups_of(structures, item):
                producers[group].add(module)
    several = [len(found) >= _PRODUCERS for found in producers]
    return normalised & torch.tensor(several, device="cpu")


def _groups_of(structures: StructureMap, item: Slice) -> set[int]:
    return set(structures.group_of[item.structure[item.structure >= 0]].tolist())


def _over_the_width(module: nn.Module) -> bool:
    """By its name: every library has layer norms and RMS norms of its own."""
    name = type(module).__name__
    others = ("BatchNorm", "InstanceNorm", "GroupNorm")
    return "Norm" in name and not any(other in name for other in others)
