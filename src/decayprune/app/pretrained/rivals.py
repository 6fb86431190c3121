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
from torch import nn

from decayprune.app.pretrained.loop import Batch

_SHARED = ("in_channel_groups", "out_channel_groups", "num_heads", "channel_groups")
_GRID = 400  # ratios tried; its authors go to a budget in as many steps


def bisected(
    model: nn.Module,
    cut: Callable[[Any, float], Any],
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
        F.cross_entropy(model(**inputs), labels).backward()  # type: ignore[no-untyped-call]

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


def remove(model: Any, example: Any, importance: str, **options: Any) -> Any:
    """Remove channels of a model in place, the same share of every layer, its default.

    Args:
        model: To be cut.
        example: Inputs.
        importance: ``"magnitude"`` or ``"taylor"``.
        options: Of its pruner.

    Returns:
        Its pruner.

    Raises:
        ModuleNotFoundError: It is not installed; says what to do.
    """
    try:
        import torch_pruning as tp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Torch-Pruning is compared with, and is missing. Install it: pip install torch-pruning"
        ) from error
    kinds = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }
    # Its defaults are dictionaries that all pruners share, and into which it writes.
    own: dict[str, Any] = {name: {} for name in _SHARED} | options
    pruner = tp.pruner.BasePruner(
        model, example, importance=kinds[importance](), global_pruning=False, **own
    )
    pruner.step()
    return pruner
