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

CPU = torch.device("cpu")

WEIGHTS: tuple[Role, ...] = ("row", "affine", "column", "gate")
"""Roles that hold weights: all but running statistics."""


class Totals:
    """Sums of what belongs to the same structure, added up in the same order every time.

    ``index_add_`` on a GPU adds in the order in which its threads happen to arrive. Sums that
    differ in their last bits are enough for two ranks, or for a run and its repetition, to pick
    different structures. So values are sorted by their structure there, and summed piece by piece;
    a CPU, and MPS, which has no such sum, add them as they come.

    Args:
        owner: Structure of each value, on the CPU, int64, shape ``(n,)``; ``size`` and more where
            none counts.
        size: Number of structures, ``S``.
        device: Where the values are.
    """

    def __init__(self, owner: Tensor, size: int, device: torch.device) -> None:
        self._size = size
        self._sorted = device.type not in ("cpu", "mps")
        if not self._sorted:
            self._owner = owner.to(device)
            return
        numbers = torch.bincount(owner, minlength=size)[:size]
        ends = torch.cat([numbers.new_zeros(1), numbers.cumsum(0)])
        order = owner.argsort(stable=True)[: int(ends[-1])]
        there = torch.cat([order, ends]).to(device, non_blocking=True)
        self._order, self._ends = there[: order.numel()], there[order.numel() :]

    def of(self, values: Tensor) -> Tensor:
        """The sum of each structure, shape ``(S, ...)``.

        Args:
            values: Floats of the device, shape ``(n, ...)``.
        """
        if self._sorted:
            return torch.segment_reduce(
                values[self._order], "sum", offsets=self._ends, unsafe=True, initial=0
            )
        # One spare place takes what belongs to no structure.
        total = values.new_zeros(self._size + 1, *values.shape[1:])
        return total.index_add_(0, self._owner, values)[: self._size]


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
        structure = item.structure
        if carriers and not bool(item.carrier.all()):
            structure = torch.where(item.carrier, structure, -1)
            if not bool((structure >= 0).any()):
                continue
        chosen.append(Labelled(item.name, item.dim, structure))
    return tuple(chosen)


def sum_products(
    slices: Collection[Labelled],
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
    device = next((left[item.name].device for item in slices), CPU)
    # There a norm is one kernel, and products and their sum are two.
    norms = right is None and device != CPU
    labels, values = [item.structure for item in vectors], []
    if vectors:  # hundreds of short ones, as one
        a, b = (_joined(vectors, one) for one in (left, left if right is None else right))
        values.append(a if norms else a * b)
    for name, items in by_name.items():
        a, dims = left[name].detach(), [item.dim for item in items]
        b = a if right is None else right[name].detach()
        values += [norm_but(a, dim) for dim in dims] if norms else _sums_by_dim(a, b, dims)
        labels += [item.structure for item in items]
    if not values:
        return torch.zeros(size, device="cpu")
    every, owner = torch.cat(values), torch.cat(labels)
    every = every.square() if norms else every
    return Totals(torch.where(owner < 0, size, owner), size, every.device).of(every)


def _joined(vectors: Iterable[Labelled], tensors: Mapping[str, Tensor]) -> Tensor:
    every = torch.cat([tensors[item.name].detach() for item in vectors])
    return every.to(_wide(every))


def _wide(tensor: Tensor) -> torch.dtype:
    """What its sums are in: float32, or what is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def norm_but(x: Tensor, dim: int) -> Tensor:
    """Norm over all dimensions but one, of which there is another, in float32 or wider."""
    others = [d for d in range(x.dim()) if d != dim]
    found: Tensor = torch.linalg.vector_norm(x, dim=others, dtype=_wide(x))
    return found


def _sums_by_dim(a: Tensor, b: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """Sum of ``a * b`` over all dimensions but one, for each dimension named, in one pass."""
    wide, at_once = _wide(a), a.numel() <= _BLOCK or a.device != CPU  # no device needs blocks
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
