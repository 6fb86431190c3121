"""Replacing what was released, and releasing what a target can spare.

A host has an order of candidates and a test that says whether its target holds at some widths.
Both functions walk the order and change one width at a time, so that a target is met within one
structure whatever was released.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Met = Callable[[Tensor], bool]
"""Structures kept in each group, shape ``(G,)`` -> whether the target holds."""


def refill(order: Tensor, kept: Tensor, floor: Tensor, group_of: Tensor, met: Met) -> Tensor:
    """The shortest part of an order that has to leave until a target holds.

    Args:
        order: Candidates, the first to leave in front, shape ``(n,)``.
        kept: Structures kept in each group now, shape ``(G,)``.
        floor: How many have to stay in each group, shape ``(G,)``; candidates of a group at its
            floor are passed over.
        group_of: Group of each structure, shape ``(S,)``.
        met: The target.

    Returns:
        Those that leave; all that may if the target cannot be met.
    """
    kept, chosen = kept.clone(), []
    for structure in order.tolist():
        if met(kept):
            break
        group = int(group_of[structure])
        if kept[group] > floor[group]:
            kept[group] -= 1
            chosen.append(structure)
    return torch.tensor(chosen, dtype=torch.int64)


def affordable(
    order: Tensor, kept: Tensor, group_of: Tensor, met: Met, unit: Tensor | None = None
) -> Tensor:
    """Which candidates may come back with a target still met, the first in front.

    Args:
        order: Candidates, shape ``(n,)``.
        kept: Structures kept in each group without them, shape ``(G,)``.
        group_of: Group of each structure, shape ``(S,)``.
        met: The target.
        unit: So many structures of a group come back together, shape ``(G,)``; None: one.
    """
    kept, chosen = kept.clone(), []
    units = (torch.ones_like(kept) if unit is None else unit).tolist()
    together: dict[int, list[int]] = {}
    full: set[int] = set()  # what does not fit now fits even less when others have come back
    for structure, group in zip(order.tolist(), group_of[order].tolist(), strict=True):
        if group in full:
            continue
        waiting = together.setdefault(group, [])
        waiting.append(structure)
        if len(waiting) < units[group]:
            continue
        kept[group] += units[group]
        if met(kept):
            chosen += together.pop(group)
        else:
            kept[group] -= units[group]
            full.add(group)
    return torch.tensor(chosen, dtype=torch.int64)
