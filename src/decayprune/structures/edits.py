"""Vectorised arithmetic over a few structures: norms, inner products, scaling, zeroing.

A :class:`Pick` says where the slices of some structures lie, and every step of a decay touches
those alone, without a loop over structures. Parameters come in by name, values go in and out as
one per picked structure; only functions whose name ends in an underscore change a parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from decayprune.structures.sums import Labelled

_LINE = 64  # bytes of a cache line


@dataclass(frozen=True, eq=False)
class Block:
    """Indices of one dimension of one tensor that belong to the picked structures."""

    name: str
    dim: int
    index: Tensor
    owner: Tensor


@dataclass(frozen=True, eq=False)
class Pick:
    """Where the slices of ``D`` picked structures lie.

    One-dimensional tensors (biases, affines) are handled together, as positions in their
    concatenation: a network has hundreds of them, and one long operation beats hundreds of short
    ones. Others are handled block by block.

    Attributes:
        size: ``D``.
        vectors: Names of the one-dimensional tensors that are touched.
        sizes: Their lengths.
        position: Positions in their concatenation, shape ``(n,)``.
        owner: Which of the ``D`` structures each position belongs to, shape ``(n,)``.
        blocks: Slices of the other tensors.
    """

    size: int
    vectors: tuple[str, ...]
    sizes: tuple[int, ...]
    position: Tensor
    owner: Tensor
    blocks: tuple[Block, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that is touched; a tensor cut along two dimensions comes twice."""
        return self.vectors + tuple(block.name for block in self.blocks)


class Values(NamedTuple):
    """Copies of the picked slices: of the vectors, shape ``(n,)``, and of each block."""

    flat: Tensor
    blocks: tuple[Tensor, ...]


class Locator:
    """Finds the slices of picked structures.

    Args:
        slices: The slices to look in.
        size: Number of structures, ``S``.
        ranks: Number of dimensions of each tensor, by name.
        device: Where the tensors live.
    """

    def __init__(
        self,
        slices: Sequence[Labelled],
        size: int,
        ranks: Mapping[str, int],
        device: torch.device | None = None,
    ) -> None:
        self._size = size
        # One-dimensional tensors first, so that they are one stretch of the concatenation.
        self._slices = sorted(slices, key=lambda item: ranks[item.name] > 1)
        self._widths = [item.structure.numel() for item in self._slices]
        self._num_vectors = sum(ranks[item.name] == 1 for item in self._slices)
        labels = [item.structure for item in self._slices] or [torch.zeros(0, dtype=torch.int64)]
        self._labels = torch.cat(labels).to(device)
        self._start = torch.tensor([0, *self._widths]).cumsum(0)

    def pick(self, ids: Tensor) -> Pick:
        """The slices of some structures.

        Args:
            ids: Structure numbers, shape ``(D,)``.
        """
        # One slot more than structures: the label -1 of what belongs to none reads the last, a -1.
        local = torch.full((self._size + 1,), -1, dtype=torch.int64, device=self._labels.device)
        local[ids] = torch.arange(ids.numel(), device=local.device)
        owners = local[self._labels]
        hits = (owners >= 0).nonzero().flatten()
        owners = owners[hits]
        bounds = torch.searchsorted(hits, self._start.to(hits.device)).tolist()
        touched = [i for i in range(len(self._slices)) if bounds[i + 1] > bounds[i]]

        vectors = [i for i in touched if i < self._num_vectors]
        positions, offset = [hits[:0]], 0
        for i in vectors:
            positions.append(hits[bounds[i] : bounds[i + 1]] - int(self._start[i]) + offset)
            offset += self._widths[i]
        blocks = tuple(
            Block(
                self._slices[i].name,
                self._slices[i].dim,
                hits[bounds[i] : bounds[i + 1]] - int(self._start[i]),
                owners[bounds[i] : bounds[i + 1]],
            )
            for i in touched
            if i >= self._num_vectors
        )
        return Pick(
            size=ids.numel(),
            vectors=tuple(self._slices[i].name for i in vectors),
            sizes=tuple(self._widths[i] for i in vectors),
            position=torch.cat(positions),
            owner=owners[: bounds[self._num_vectors]],
            blocks=blocks,
        )


def picked(slices: Sequence[Labelled], gone: Tensor, tensors: Mapping[str, Tensor]) -> Pick:
    """The slices of the structures of a mask, located once; a :class:`Locator` is for more often.

    Args:
        slices: The slices to look in.
        gone: Which structures, bool, shape ``(S,)``.
        tensors: Parameters by name.
    """
    ranks = {item.name: tensors[item.name].dim() for item in slices}
    device = tensors[slices[0].name].device if slices else gone.device
    return Locator(slices, gone.numel(), ranks, device).pick(gone.nonzero().flatten().to(device))


@torch.no_grad()
def gather(pick: Pick, tensors: Mapping[str, Tensor]) -> Values:
    """Copy the picked slices out, as float32 (float64 stays)."""
    flat = torch.zeros(0)
    if pick.vectors:
        flat = _wide(torch.cat([tensors[name] for name in pick.vectors]))[pick.position]
    return Values(
        flat,
        tuple(
            _wide(tensors[block.name].index_select(block.dim, block.index)) for block in pick.blocks
        ),
    )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def merged(pick: Pick, new: Values, old: Values, names: Collection[str]) -> Values:
    """Copies in which the slices of some tensors are new and those of all others old.

    Args:
        pick: Which slices.
        new: What is taken for the tensors named.
        old: What is taken for all others.
        names: Tensors.
    """
    mine = torch.tensor([name in names for name in pick.vectors], device=new.flat.device)
    sizes = torch.tensor(pick.sizes, dtype=torch.int64, device=new.flat.device)
    flat = new.flat
    if pick.vectors:
        here = torch.repeat_interleave(mine, sizes)[pick.position]
        flat = torch.where(here, new.flat, old.flat)
    blocks = zip(pick.blocks, new.blocks, old.blocks, strict=True)
    return Values(flat, tuple(n if block.name in names else o for block, n, o in blocks))


def dot(pick: Pick, a: Values, b: Values) -> Tensor:
    """Inner product of the slices of each picked structure, shape ``(D,)``."""
    like = a.flat if pick.vectors else a.blocks[0] if a.blocks else a.flat
    total = like.new_zeros(pick.size)
    if pick.vectors:
        total.index_add_(0, pick.owner, a.flat * b.flat)
    for block, x, y in zip(pick.blocks, a.blocks, b.blocks, strict=True):
        total.index_add_(0, block.owner, _along(x, y, block.dim).to(total.dtype))
    return total


@torch.no_grad()
def squares(pick: Pick, tensors: Mapping[str, Tensor]) -> Tensor:
    """Squared norm of each picked structure, shape ``(D,)``.

    As ``dot`` of what ``gather`` copies, but one block at a time: a copy that stays in the cache
    costs a fraction of one that does not.

    Args:
        pick: Which slices.
        tensors: Parameters by name.
    """
    flat = gather(replace(pick, blocks=()), tensors).flat
    like = flat if pick.vectors or not pick.blocks else tensors[pick.blocks[0].name]
    total = _wide(like.new_zeros(pick.size))
    if pick.vectors:
        total.index_add_(0, pick.owner, flat * flat)
    for block in pick.blocks:
        part = _wide(tensors[block.name].index_select(block.dim, block.index))
        total.index_add_(0, block.owner, _squares(part, block.dim).to(total.dtype))
    return total


def _squares(part: Tensor, dim: int) -> Tensor:
    """Sum of squares over all dimensions but one, of a copy that is not needed any more."""
    if dim == 0:  # several times faster than vecdot on short rows
        lengths: Tensor = torch.linalg.vector_norm(part.flatten(1), dim=1)
        return lengths * lengths
    return _sum_but(part.mul_(part), dim)


def _along(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Sum of ``x * y`` over all dimensions but one."""
    if dim == 0:
        rows: Tensor = torch.linalg.vecdot(x.flatten(1), y.flatten(1))
        return rows
    return _sum_but(x * y, dim)


def _sum_but(x: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but one."""
    if dim == 1:  # adding up whole rows first is several times faster than strided reduction
        return x.flatten(1).sum(0).view(x.shape[1], -1).sum(1)
    return x.sum([d for d in range(x.dim()) if d != dim])


@torch.no_grad()
def scale_(pick: Pick, tensors: Mapping[str, Tensor], factors: Tensor) -> None:
    """Multiply the slices of each picked structure, in place, by its factor.

    An element that is a row of one and a column of another picked structure takes both factors.

    Args:
        pick: Which slices.
        tensors: Parameters by name.
        factors: Shape ``(D,)``.
    """
    if pick.vectors:
        stretch = factors.new_ones(sum(pick.sizes)).index_put_(
            (pick.position,), factors[pick.owner]
        )
        vectors = [tensors[name] for name in pick.vectors]
        parts = torch.split(stretch, list(pick.sizes))
        if any(vector.dtype != factors.dtype for vector in vectors):
            parts = tuple(p.to(v.dtype) for p, v in zip(parts, vectors, strict=True))
        torch._foreach_mul_(vectors, parts)
    for block in pick.blocks:  # one after the other: where two cross, both factors are taken
        tensor = tensors[block.name]
        factor = factors[block.owner].to(tensor.dtype)
        if _better_whole(tensor, block):
            every = factor.new_ones(tensor.shape[block.dim]).index_copy_(0, block.index, factor)
            _multiply_whole_(tensor, block.dim, every)
            continue
        part = tensor.index_select(block.dim, block.index)
        part.mul_(_along_dim(factor, block.dim, tensor.dim()))
        if block.dim == 0:
            tensor[block.index] = part  # index_copy_ spends microseconds on every row
        else:
            tensor.index_copy_(block.dim, block.index, part)


def _better_whole(tensor: Tensor, block: Block) -> bool:
    """Whether multiplying the unpicked by one is faster than walking the picked alone.

    So it is where the picked lie in pieces shorter than a cache line: their lines are read anyway.
    """
    short = tensor.stride(block.dim) * tensor.element_size() < _LINE
    return block.dim > 0 and short and block.index.numel() * 32 >= tensor.shape[block.dim]


def _multiply_whole_(tensor: Tensor, dim: int, factors: Tensor) -> None:
    """Multiply along one dimension, every index by its own factor."""
    inner = tensor.shape[dim + 1 :].numel()
    if dim == 1 and tensor.is_contiguous() and inner > 1:
        # One long inner loop instead of one for each short piece.
        tensor.view(tensor.shape[0], -1).mul_(factors.repeat_interleave(inner))
    else:
        tensor.mul_(_along_dim(factors, dim, tensor.dim()))


def _along_dim(vector: Tensor, dim: int, rank: int) -> Tensor:
    """A vector shaped so that it multiplies a tensor of so many dimensions along one of them."""
    shape = [1] * rank
    shape[dim] = -1
    return vector.view(shape)


@torch.no_grad()
def scatter_(pick: Pick, tensors: Mapping[str, Tensor], values: Values) -> None:
    """Write copies of the picked slices back, exactly as :func:`gather` took them.

    Args:
        pick: Which slices.
        tensors: Parameters by name.
        values: What was gathered.
    """
    offset = 0
    for name, size in zip(pick.vectors, pick.sizes, strict=True):
        inside = (pick.position >= offset) & (pick.position < offset + size)
        tensor = tensors[name]
        tensor[pick.position[inside] - offset] = values.flat[inside].to(tensor.dtype)
        offset += size
    for block, value in zip(pick.blocks, values.blocks, strict=True):
        tensor = tensors[block.name]
        tensor.index_copy_(block.dim, block.index, value.to(tensor.dtype))


@torch.no_grad()
def zero_(pick: Pick, tensors: Mapping[str, Tensor]) -> None:
    """Write exact zeros into the slices of the picked structures.

    Args:
        pick: Which slices.
        tensors: Parameters (or tensors shaped like them) by name; names that are missing are
            passed over.
    """
    # Positions ascend, so each vector's share of them is one stretch.
    ends = torch.tensor(pick.sizes, device=pick.position.device).cumsum(0)
    counts = torch.searchsorted(pick.position, ends).tolist()
    first, offset = 0, 0
    for name, size, last in zip(pick.vectors, pick.sizes, counts, strict=True):
        if name in tensors:
            tensors[name].index_fill_(0, pick.position[first:last] - offset, 0)
        first, offset = last, offset + size
    for block in pick.blocks:
        if block.name in tensors:
            tensors[block.name].index_fill_(block.dim, block.index, 0)
