"""Vectorised arithmetic over all structures: norms and inner products, once a round.

:func:`sum_products` reads every slice of every structure once, in blocks that fit a CPU cache, and
gives one value per structure; nothing here loops over structures or changes a parameter. What
touches the slices of a few structures at every step is in ``edits``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from decayprune.structures.structure_map import Role, StructureMap

_BLOCK = 1 << 16  # floats per block: a quarter of a MiB stays in the second-level cache

WEIGHTS: tuple[Role, ...] = ("row", "affine", "column")
"""Roles that hold weights: all but running statistics."""


class Labelled(NamedTuple):
    """One dimension of one tensor and the structure of each index, -1 where none counts."""

    name: str
    dim: int
    structure: Tensor


def labelled(
    structures: StructureMap, roles: Collection[Role] = WEIGHTS, *, carriers: bool = False
) -> tuple[Labelled, ...]:
    """The slices of a map that have one of the roles, or the carriers alone.

    Args:
        structures: The map.
        roles: Which slices.
        carriers: Keep only indices whose scaling scales the function.
    """
    chosen = []
    for item in structures.slices:
        if item.role not in roles:
            continue
        structure = torch.where(item.carrier, item.structure, -1) if carriers else item.structure
        if bool((structure >= 0).any()):
            chosen.append(Labelled(item.name, item.dim, structure))
    return tuple(chosen)


def sum_products(
    slices: Iterable[Labelled],
    size: int,
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """``sum(left * right)`` over the slices of each structure; of squares if ``right`` is None.

    An element that belongs to two structures (row of one, column of another) counts for both.

    Args:
        slices: What belongs to the structures.
        size: Number of structures, ``S``.
        left: Tensors by name.
        right: Tensors of the same names and shapes, or None.

    Returns:
        One float32 (float64 for float64 tensors) per structure, shape ``(S,)``.
    """
    by_name: dict[str, list[Labelled]] = defaultdict(list)
    vectors = []
    for item in slices:
        if left[item.name].dim() == 1:
            vectors.append(item)
        else:
            by_name[item.name].append(item)
    labels, values = [item.structure for item in vectors], []
    if vectors:  # hundreds of short ones, as one
        names = [item.name for item in vectors]
        values.append(_vector_products(names, left, left if right is None else right))
    for name, items in by_name.items():
        a = left[name].detach()
        b = a if right is None else right[name].detach()
        sums = _sums_by_dim(a, b, [item.dim for item in items])
        labels += [item.structure for item in items]
        values += sums
    if not values:
        return torch.zeros(size)
    every = torch.cat(values)
    # One spare slot at the end takes the indices that belong to no structure (label -1).
    owner = torch.cat(labels)
    owner = torch.where(owner < 0, size, owner).to(every.device)
    total = every.new_zeros(size + 1).index_add_(0, owner, every)
    return total[:size]


def _vector_products(
    names: Sequence[str], left: Mapping[str, Tensor], right: Mapping[str, Tensor]
) -> Tensor:
    a, b = (torch.cat([one[name].detach() for name in names]) for one in (left, right))
    wide = torch.promote_types(a.dtype, torch.float32)
    return a.to(wide) * b.to(wide)


def _sums_by_dim(a: Tensor, b: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """Sum of ``a * b`` over all dimensions but one, for each dimension named, in one pass."""
    wide = torch.promote_types(a.dtype, torch.float32)
    at_once = a.numel() <= _BLOCK or a.device.type != "cpu"  # a device has no use for blocks
    if max(dims) > 1 or at_once or not a.is_contiguous():
        product = a.to(wide) * b.to(wide)
        others = [[d for d in range(a.dim()) if d != dim] for dim in dims]
        return [product.sum(rest) if rest else product for rest in others]
    rows, columns = a.shape[:2]
    a, b = a.view(rows, columns, -1), b.reshape(rows, columns, -1)
    step = max(1, _BLOCK // (a.shape[1] * a.shape[2]))
    of_row, of_column = [], a.new_zeros(columns, dtype=wide)
    for start in range(0, rows, step):
        block = a[start : start + step].to(wide) * b[start : start + step].to(wide)
        # Both sums are taken while the block is in the cache: the weights are read once.
        flat = block.sum(2) if block.shape[2] > 1 else block.view(-1, columns)
        if 0 in dims:
            of_row.append(flat.sum(1))
        if 1 in dims:
            of_column += flat.sum(0)
    return [torch.cat(of_row) if dim == 0 else of_column for dim in dims]
