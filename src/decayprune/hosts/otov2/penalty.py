"""The mathematics of DHSPG: who is redundant, who is penalised, and how strongly.

Pure functions of inner products; the optimizer in ``dhspg.py`` gathers those and moves weights.
Source: Chen et al., OTOv2, arXiv 2303.06862; formulas as in its published code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from decayprune.hosts.otov2.products import Products

GUARD = 1e-8
"""Keeps divisions by norms finite, as published."""


class Penalty(NamedTuple):
    """Strength of the penalty: ``lmbda``, up to ``hat`` times as much where training resists."""

    lmbda: float
    amplify: float
    hat: float


PENALTIES: dict[str, Penalty] = {
    "sgd": Penalty(1e-3, 2, 10),
    "adam": Penalty(1e-2, 20, 1e3),
    "adamw": Penalty(1e-2, 20, 1e3),
}
"""The published defaults."""


def saliency(products: Products, numel: Tensor) -> Tensor:
    """How redundant each structure is: half direction, half size; the highest go.

    ``cos(x, d)`` is high where the step shrinks the structure already; the other half is the
    inverse of its mean norm. Each is divided by its L2 norm over all structures.

    Args:
        products: Inner products of weights and directions.
        numel: Weights per structure, shape ``(S,)``.
    """
    norm, length = products.xx.sqrt(), products.dd.sqrt()
    cosine = products.xd / (norm.clamp(min=GUARD) * length.clamp(min=GUARD))
    inverse = 1 / (norm / numel + 1e-6)
    halves = [torch.nn.functional.normalize(half, dim=0) for half in (cosine, inverse)]
    return 0.5 * halves[0] + 0.5 * halves[1]


def partition(order: Tensor, group_of: Tensor, sizes: Tensor, divisible: int) -> Tensor:
    """Which structures are penalised, with the number kept in each group rounded.

    Args:
        order: The most redundant structures, those that should go, the first in front.
        group_of: Group of each structure, shape ``(S,)``.
        sizes: Structures in each group, shape ``(G,)``.
        divisible: Keep a multiple of it in each group, at least one multiple.

    Returns:
        How many of each group are penalised, shape ``(G,)``: its most redundant ones.
    """
    kept = sizes - torch.bincount(group_of[order], minlength=sizes.numel())
    rounded = (kept / divisible).round().clamp(min=1).long() * divisible
    return torch.where(sizes <= divisible, 0, (sizes - rounded).clamp(min=0))


def strengths(products: Products, penalty: Penalty) -> Tensor:
    """Penalty coefficient of each structure, shape ``(S,)``.

    Where descent would lengthen ``x`` (``<x, d> < 0``) it is raised above the least value that
    still shrinks ``x``, but stays below the largest one that is still a descent direction.

    Args:
        products: Inner products of weights and directions.
        penalty: Base strength and limits.
    """
    xd, norm = products.xd, products.xx.sqrt()
    resisting = xd < 0
    safe = torch.where(resisting, xd, -1.0)
    lowest = -safe / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    highest = -products.dd * norm / safe
    raised = (penalty.amplify * lowest).clamp(penalty.lmbda, penalty.lmbda * penalty.hat)
    raised = torch.where(raised >= highest, (lowest + highest) / 2, raised)
    return torch.where(resisting, raised, penalty.lmbda)
