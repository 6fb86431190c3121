"""Torch-Pruning by itself, down to a budget of MACs.

It works here without its host of this library: the host refuses ``prune_num_heads`` (how many
heads a layer has left is kept by Torch-Pruning alone), and without it attention would lose parts of
every head, which the library does not take for structures.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
import torch_pruning as tp
from loop import Batch
from torch import nn

_GRID = 400  # ratios tried; its authors go to a budget in as many steps
IMPORTANCES = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "taylor": tp.importance.GroupTaylorImportance,
}


def bisected(
    model: nn.Module,
    cut: Callable[[Any, float], None],
    fits: Callable[[Any], bool],
    batches: Iterable[Batch],
) -> nn.Module:
    """A copy cut by the least ratio that fits.

    Args:
        model: Dense; left as it is, but for its gradients.
        cut: Removes a share of the channels of a copy, in place.
        fits: Whether a cut copy meets the budget.
        batches: Whose gradients the importance reads, with their labels; may be empty.
    """
    for inputs, labels in batches:
        F.cross_entropy(model(**inputs), labels).backward()

    def cut_by(tick: int) -> nn.Module:
        copied = copy.deepcopy(model)
        for mine, its in zip(copied.parameters(), model.parameters(), strict=True):
            mine.grad = None if its.grad is None else its.grad.clone()
        cut(copied, tick / _GRID)
        return copied

    found = cut_by(bisect_left(range(_GRID), True, key=lambda tick: fits(cut_by(tick))))
    model.zero_grad()
    found.zero_grad()
    return found.train()
