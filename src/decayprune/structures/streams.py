"""Residual streams: the widths that all blocks of a transformer share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decayprune.structures.structure_map import StructureMap

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
    groups = len(structures.groups)
    producers, normalised = (
        [set[str]() for _ in range(groups)],
        torch.zeros(groups, dtype=torch.bool, device="cpu"),
    )
    for item in structures.slices:
        module, _, kind = item.name.rpartition(".")
        here = set(structures.group_of[item.structure[item.structure >= 0]].tolist())
        if item.role == "row" and kind != "bias":
            for group in here:
                producers[group].add(module)
        elif item.role == "affine" and _over_the_width(model.get_submodule(module)):
            normalised[list(here)] = True
    return normalised & torch.tensor(
        [len(found) >= _PRODUCERS for found in producers], device="cpu"
    )


def _over_the_width(module: nn.Module) -> bool:
    """By its name: every library has layer norms and RMS norms of its own."""
    name = type(module).__name__
    others = ("BatchNorm", "InstanceNorm", "GroupNorm")
    return "Norm" in name and not any(other in name for other in others)
