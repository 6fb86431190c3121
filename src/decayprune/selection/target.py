"""Replacing what was released, and releasing what a target can spare.

A host has an order of candidates and a test that says whether its target holds at some widths.
The functions walk the order and change one width at a time, so that a target is met within one
structure whatever was released.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor

Met = Callable[[Tensor], bool]
"""Structures kept in each group, shape ``(G,)`` -> whether the target holds."""

_PASSED_OVER = 4  # how many may be, one after the other


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
    groups = group_of[order]
    place = rank_within(torch.arange(order.numel()), groups)
    order = order[place < (kept - floor).clamp(min=0)[groups]]

    def enough(count: int) -> bool:
        return met(kept - _count(order[:count], kept, group_of))

    return order[: bisect_left(range(order.numel()), True, key=enough)]


def fitting(
    order: Tensor,
    kept: Tensor,
    group_of: Tensor,
    met: Met,
    size: Callable[[Tensor], float],
    shortest: Callable[[Tensor], Tensor],
    unit: Tensor | None = None,
) -> Tensor:
    """The shortest part of an order that meets a target, changed so that more stays if it can.

    The last one to leave may be dear and overshoot the target by most of what it costs. What the
    target can spare then comes back, the last in the order first; and if more stays with others
    in its place, it is passed over.

    Args:
        order: Candidates, the first to leave in front, shape ``(n,)``.
        kept: Structures kept in each group now, shape ``(G,)``.
        group_of: Group of each structure, shape ``(S,)``.
        met: The target.
        size: How much stays at some widths: MACs, say.
        shortest: The shortest part of an order, as :func:`refill` finds it.
        unit: So many structures of a group come back together, shape ``(G,)``; None: one.

    Returns:
        Those that leave; all that may if the target cannot be met.
    """
    best, most = shortest(order), -1.0
    ids = best
    for _ in range(_PASSED_OVER + 1):
        left = kept - _count(ids, kept, group_of)
        if not ids.numel() or not met(left):
            break
        back = affordable(ids.flip(0), left, group_of, met, unit)
        stays = size(left + _count(back, kept, group_of))
        if stays > most:
            best, most = ids[~torch.isin(ids, back)], stays
        order = order[order != ids[-1]]
        ids = shortest(order)
    return best


def _count(ids: Tensor, like: Tensor, group_of: Tensor) -> Tensor:
    return torch.bincount(group_of[ids], minlength=like.numel())


def rank_within(values: Tensor, pool: Tensor) -> Tensor:
    """Position of each value among those of its pool, ascending, ties in order."""
    order = torch.sort(values, stable=True).indices
    order = order[torch.sort(pool[order], stable=True).indices]
    sizes = torch.bincount(pool)
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel()) - first[pool[order]]
    return place


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
