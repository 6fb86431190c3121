"""Vectorised arithmetic over some structures: norms, inner products, scaling, zeroing.

A :class:`Pick` says where the slices of some structures lie, and every step of a decay touches
those alone, without a loop over structures. Values go in and out as vectors over *all* structures,
so that their shapes never change; what is not picked reads 0 and is left as it is. Only functions
whose name ends in an underscore change a parameter.

On a CPU a tensor of which little is picked is walked row by row, in blocks that fit a cache; an
accelerator always goes through whole tensors, with few long kernels and nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from decayprune.structures.sums import CPU, Labelled, Totals, norm_but

_LINE = 64  # bytes of a cache line
_BLOCK = 1 << 16  # floats that are read at once: a quarter of a MiB stays in the second-level cache


_NONE = torch.zeros(0, dtype=torch.int64, device="cpu")


@dataclass(frozen=True, eq=False)
class Block:
    """One dimension of one tensor, of which some indices are picked."""

    name: str
    dim: int
    index: Tensor | None
    """Those indices; None for all of the dimension."""
    owner: Tensor
    """Structure that each of them belongs to; ``S`` where none that is picked."""


@dataclass(frozen=True, eq=False)
class Pick:
    """Where the slices of some of ``S`` structures lie.

    One-dimensional tensors (biases, affines) are handled together, as one concatenation: a network
    has hundreds of them, and one long operation beats hundreds of short ones. Others are handled
    block by block.

    Attributes:
        size: ``S``.
        vectors: Names of the one-dimensional tensors that are touched.
        sizes: Their lengths.
        owner: Structure that each place of their concatenation belongs to, ``S`` where none that is
            picked, shape ``(n,)``.
        blocks: Slices of the other tensors.
        owners: Of all places of all slices, on the CPU.
        parts: All slices as the host knows them, those of one-dimensional tensors in front.
    """

    size: int
    vectors: tuple[str, ...]
    sizes: tuple[int, ...]
    owner: Tensor
    blocks: tuple[Block, ...]
    owners: Tensor
    parts: tuple[Block, ...]
    _narrowed: dict[frozenset[str], Pick] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, parts: Sequence[Block], vectors: int, size: int, device: torch.device) -> Pick:
        """Slices that the host knows, on a device.

        Args:
            parts: Those slices, on the CPU.
            vectors: So many of them, in front, are of one-dimensional tensors.
            size: Number of structures, ``S``.
            device: Where the tensors live.
        """
        sizes = [part.owner.numel() for part in parts]
        owners = torch.cat([part.owner for part in parts] or [_NONE])
        there = owners.to(device, non_blocking=True)
        here = [
            replace(part, owner=owner)  # views: what is known of a pick is held once
            for part, owner in zip(parts, torch.split(owners, sizes), strict=True)
        ]
        blocks = zip(here[vectors:], torch.split(there, sizes)[vectors:], strict=True)
        return cls(
            size=size,
            vectors=tuple(part.name for part in here[:vectors]),
            sizes=tuple(sizes[:vectors]),
            owner=there[: sum(sizes[:vectors])],
            blocks=tuple(replace(part, owner=owner) for part, owner in blocks),
            owners=owners,
            parts=tuple(here),
        )

    @cached_property
    def totals(self) -> Totals:
        """Adds up what belongs to the same structure."""
        return Totals(self.owners, self.size, self.owner.device)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that is touched; a tensor cut along two dimensions comes twice."""
        return self.vectors + tuple(block.name for block in self.blocks)

    def only(self, names: Collection[str]) -> Pick:
        """The slices of these tensors alone; found once, as every step asks for the same."""
        key = frozenset(names)
        if key not in self._narrowed:
            vectors = sum(name in key for name in self.vectors)
            parts = [part for part in self.parts if part.name in key]
            self._narrowed[key] = Pick.of(parts, vectors, self.size, self.owner.device)
        return self._narrowed[key]


class Locator:
    """Finds the slices of picked structures.

    Args:
        slices: The slices to look in.
        size: Number of structures, ``S``.
        tensors: The tensors that they are slices of, by name.
        device: Where the tensors live.
    """

    def __init__(
        self,
        slices: Sequence[Labelled],
        size: int,
        tensors: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        self._size, self._tensors = size, tensors
        # One-dimensional tensors first, so that they are one stretch of the concatenation.
        self._slices = sorted(slices, key=lambda item: tensors[item.name].dim() > 1)
        self._widths = [item.structure.numel() for item in self._slices]
        self._num_vectors = sum(tensors[item.name].dim() == 1 for item in self._slices)
        self._device = device
        self._ends = torch.tensor(self._widths, dtype=torch.int64, device="cpu").cumsum(0)

    def pick(self, chosen: Tensor) -> Pick:
        """The slices of some structures.

        Args:
            chosen: Which, bool, shape ``(S,)``, on the CPU: where they lie is found there, and an
                accelerator is told.
        """
        # All labels in a row are as much to hold as the map; they are joined when they are needed.
        labels = torch.cat([item.structure for item in self._slices] or [_NONE])
        inside = torch.cat([chosen, chosen.new_zeros(1)])[labels]  # of -1 the last
        owners = torch.split(torch.where(inside, labels, self._size), self._widths)
        up_to = torch.cat([self._ends.new_zeros(1), inside.cumsum(0)])[self._ends].tolist()
        counts = [b - a for a, b in zip([0, *up_to], up_to, strict=False)]
        touched = [i for i, count in enumerate(counts) if count]
        vectors = sum(i < self._num_vectors for i in touched)
        parts = [self._block(self._slices[i], owners[i], counts[i]) for i in touched]
        return Pick.of(parts, vectors, self._size, self._device)

    def _block(self, item: Labelled, owner: Tensor, count: int) -> Block:
        tensor = self._tensors[item.name]
        if tensor.dim() == 1 or _better_whole(tensor, item.dim, count):
            return Block(item.name, item.dim, None, owner)
        index = (owner < self._size).nonzero().flatten()
        return Block(item.name, item.dim, index, owner[index])


def _better_whole(tensor: Tensor, dim: int, count: int) -> bool:
    """Whether going through all of a tensor is faster than through what is picked of it.

    So it is where much is picked, and where the picked lie in pieces shorter than a cache line:
    their lines are read anyway. On an accelerator it always is, for nobody has to wait.
    """
    short = dim > 0 and tensor.stride(dim) * tensor.element_size() < _LINE
    enough = count * (32 if short else 2) >= tensor.shape[dim]
    return enough or tensor.device.type != "cpu"


def picked(slices: Sequence[Labelled], gone: Tensor, tensors: Mapping[str, Tensor]) -> Pick:
    """The slices of some structures, located once; a :class:`Locator` is for more often.

    Args:
        slices: The slices to look in.
        gone: Which structures, bool, shape ``(S,)``.
        tensors: Parameters by name.
    """
    device = tensors[slices[0].name].device if slices else gone.device
    return Locator(slices, gone.numel(), tensors, device).pick(gone.cpu())


# ---------------------------------------------------------------- sums


@torch.no_grad()
def dot(pick: Pick, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product of the slices of each structure, in float32 (float64 stays), shape ``(S,)``.

    Args:
        pick: Which slices.
        a: Tensors by name.
        b: Tensors of the same names and shapes.
    """
    sums = [_cat(pick, a) * _cat(pick, b)] if pick.vectors else []
    sums += [_sums(block, a[block.name], b[block.name]) for block in pick.blocks]
    return _by_structure(pick, sums)


@torch.no_grad()
def squares(pick: Pick, tensors: Mapping[str, Tensor]) -> Tensor:
    """Squared norm of each structure, as :func:`dot` of a tensor with itself, shape ``(S,)``.

    Args:
        pick: Which slices.
        tensors: Parameters by name.
    """
    sums = [_cat(pick, tensors).square()] if pick.vectors else []
    sums += [_sums(block, tensors[block.name]) for block in pick.blocks]
    return _by_structure(pick, sums)


def _cat(pick: Pick, tensors: Mapping[str, Tensor]) -> Tensor:
    return _wide(torch.cat([tensors[name] for name in pick.vectors]))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _by_structure(pick: Pick, sums: Sequence[Tensor]) -> Tensor:
    if not sums:
        return torch.zeros(pick.size, device=pick.owner.device)
    return pick.totals.of(torch.cat(list(sums)) if len(sums) > 1 else sums[0])


def _sums(block: Block, a: Tensor, b: Tensor | None = None) -> Tensor:
    """Sum of ``a * b``, of squares without ``b``, over all dimensions but one."""
    if block.dim and block.index is not None:
        a = a.index_select(block.dim, block.index)
        b = None if b is None else b.index_select(block.dim, block.index)
    rows = block.index if block.dim == 0 else None
    if b is None:
        parts = [_squared(_wide(part), block.dim) for (part,) in _in_blocks(rows, a)]
    else:
        parts = [_sum_but(_wide(x) * _wide(y), block.dim) for x, y in _in_blocks(rows, a, b)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if block.dim == 0 else torch.stack(parts).sum(0)


def _in_blocks(rows: Tensor | None, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of tensors, or all; so many at a time that they stay in a CPU's cache."""
    number = tensors[0].shape[0] if rows is None else rows.numel()
    each = max(1, tensors[0].shape[1:].numel())
    step = max(1, _BLOCK // each) if tensors[0].device.type == "cpu" else max(1, number)
    for start in range(0, number, step):
        stop = start + step
        if rows is None:
            yield tuple(tensor[start:stop] for tensor in tensors)
        else:
            yield tuple(tensor.index_select(0, rows[start:stop]) for tensor in tensors)


def _squared(x: Tensor, dim: int) -> Tensor:
    """Sum of squares over all dimensions but one."""
    if dim and x.device == CPU:
        return _sum_but(x * x, dim)
    return norm_but(x, dim).square()


def _sum_but(x: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but one."""
    if dim == 1 and x.is_contiguous():  # adding up whole rows first is several times faster
        x, dim = x.flatten(1).sum(0).view(x.shape[1], -1), 0
    others = [d for d in range(x.dim()) if d != dim]
    return x.sum(others) if others else x


# ---------------------------------------------------------------- changes


@torch.no_grad()
def scale_(pick: Pick, tensors: Mapping[str, Tensor], factors: Tensor) -> None:
    """Multiply the slices of each picked structure, in place, by its factor.

    An element that is a row of one and a column of another picked structure takes both factors.

    Args:
        pick: Which slices.
        tensors: Parameters by name.
        factors: Shape ``(S,)``; those of structures that are not picked are not read.
    """
    factors = torch.cat([factors, factors.new_ones(1)])
    if pick.vectors:
        vectors = [tensors[name] for name in pick.vectors]
        parts = torch.split(factors[pick.owner], list(pick.sizes))
        if any(vector.dtype != factors.dtype for vector in vectors):
            parts = tuple(p.to(v.dtype) for p, v in zip(parts, vectors, strict=True))
        if len(set(pick.vectors)) < len(vectors):  # part of a width, and of a branch's end
            for vector, part in zip(vectors, parts, strict=True):
                vector.mul_(part)
        else:
            torch._foreach_mul_(vectors, parts)
    for block in pick.blocks:  # one after the other: where two cross, both factors are taken
        tensor = tensors[block.name]
        factor = factors[block.owner].to(tensor.dtype)
        if block.index is None:
            _multiply_whole_(tensor, block.dim, factor)
        elif block.dim == 0:
            _multiply_rows_(tensor, block.index, factor)
        else:
            part = tensor.index_select(block.dim, block.index)
            part.mul_(_along_dim(factor, block.dim, tensor.dim()))
            tensor.index_copy_(block.dim, block.index, part)


def _multiply_whole_(tensor: Tensor, dim: int, factors: Tensor) -> None:
    """Multiply along one dimension, every index by its own factor."""
    inner = tensor.shape[dim + 1 :].numel()
    if dim == 1 and tensor.is_contiguous() and inner > 1 and tensor.device.type == "cpu":
        # One long inner loop instead of one for each short piece.
        tensor.view(tensor.shape[0], -1).mul_(factors.repeat_interleave(inner))
    else:
        tensor.mul_(_along_dim(factors, dim, tensor.dim()))


def _multiply_rows_(tensor: Tensor, rows: Tensor, factors: Tensor) -> None:
    step = max(1, _BLOCK // max(1, tensor.shape[1:].numel()))
    for start in range(0, rows.numel(), step):
        some = rows[start : start + step]
        factor = _along_dim(factors[start : start + step], 0, tensor.dim())
        # index_copy_ would spend microseconds on every row.
        tensor[some] = tensor.index_select(0, some).mul_(factor)


def _along_dim(vector: Tensor, dim: int, rank: int) -> Tensor:
    """A vector shaped so that it multiplies a tensor of so many dimensions along one of them."""
    shape = [1] * rank
    shape[dim] = -1
    return vector.view(shape)


@torch.no_grad()
def zero_(pick: Pick, tensors: Mapping[str, Tensor]) -> None:
    """Write exact zeros into the slices of the picked structures.

    Args:
        pick: Which slices.
        tensors: Parameters (or tensors shaped like them) by name; names that are missing are
            passed over.
    """
    if pick.vectors:
        gone = torch.split(pick.owner < pick.size, list(pick.sizes))
        for name, mask in zip(pick.vectors, gone, strict=True):
            if name in tensors:
                tensors[name].masked_fill_(mask, 0)
    for block in pick.blocks:
        if block.name not in tensors:
            continue
        tensor = tensors[block.name]
        if block.index is None:
            mask = _along_dim(block.owner < pick.size, block.dim, tensor.dim())
            tensor.masked_fill_(mask, 0)
        else:
            tensor.index_fill_(block.dim, block.index, 0)


@torch.no_grad()
def copy_(pick: Pick, tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write given values into the slices of the picked structures.

    Args:
        pick: Which slices.
        tensors: Parameters by name.
        values: Tensors of the same names and shapes.
    """
    chosen = torch.split(pick.owner < pick.size, list(pick.sizes)) if pick.vectors else ()
    whole = [(name, 0, mask) for name, mask in zip(pick.vectors, chosen, strict=True)]
    for block in pick.blocks:
        tensor, value = tensors[block.name], values[block.name]
        if block.index is None:
            whole.append((block.name, block.dim, block.owner < pick.size))
        else:
            tensor.index_copy_(block.dim, block.index, value.index_select(block.dim, block.index))
    for name, dim, mask in whole:
        there = _along_dim(mask, dim, tensors[name].dim())
        tensors[name].copy_(torch.where(there, values[name], tensors[name]))
