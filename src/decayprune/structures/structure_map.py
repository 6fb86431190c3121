"""What a structure is: which slices of which parameters leave the model together.

A *structure* is the smallest thing a structured pruner can remove: for a plain convolution, one
output channel with its filter, its bias, its normaliser's affine and statistics, and the input
column of every layer that reads it. A :class:`StructureMap` lists all of them, as one label vector
per cut dimension of each parameter, so that everything above works on whole vectors and never
loops over structures. The map knows names and shapes only; it holds no model and no weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Role = Literal["row", "affine", "column", "buffer", "gate"]
"""What a slice is to its structure: ``row``: a producer's output row or bias; ``affine``: weight
or bias of a normaliser (and other per-channel factors); ``column``: a consumer's input column;
``buffer``: a running statistic, which is cut along but never scaled or counted in a norm; ``gate``:
all of a parameter at the end of a residual branch, which is never cut along: the branch leaves."""

FIXED = -1
"""The structure of an index that never leaves."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One dimension of one parameter, index by index.

    Attributes:
        name: Qualified name of the parameter or buffer.
        dim: The dimension that is cut.
        role: What these slices are to their structures.
        structure: Which structure each index belongs to, shape ``(width,)``, int64;
            :data:`FIXED` where the index never leaves.
        carrier: Where scaling this slice scales the function, shape ``(width,)``, bool.
    """

    name: str
    dim: int
    role: Role
    structure: Tensor
    carrier: Tensor

    @property
    def width(self) -> int:
        """Size of the dimension, before any cut."""
        return self.structure.numel()


@dataclass(frozen=True)
class Group:
    """Structures that share the same set of slices: the channels of one coupled width.

    Attributes:
        layer: Module that produces the width (the first one, where several are coupled).
        start: First structure of the group; structures of a group are numbered consecutively.
        stop: One past the last structure.
        layers: Every module whose parameters the group cuts, producers first.
        family: Groups of equal family are isomorphic: same kinds of layers, same shapes.
        width: Layer indices per structure (``head_dim`` where whole heads leave; else 1).
        channels: Channels per structure where they are fewest: one for a hidden unit of an LSTM,
            of which ``width`` counts the rows of its four gates.
    """

    layer: str
    start: int
    stop: int
    layers: tuple[str, ...]
    family: str = ""
    width: int = 1
    channels: int = 1

    @property
    def size(self) -> int:
        """Number of structures."""
        return self.stop - self.start


@dataclass(frozen=True)
class Refusal:
    """A width that is left alone, and why, in words for the user."""

    layer: str
    width: int
    reason: str


@dataclass(frozen=True, eq=False)
class Operator:
    """One counted operator: ``macs = constant * kept(labels[0]) * kept(labels[1]) * ...``.

    ``kept`` counts the indices that are fixed or whose structure stays.

    Attributes:
        layer: Module that runs the operator.
        constant: Multiply-accumulates per combination of kept indices (positions x kernel).
        labels: Label vectors as in :attr:`Slice.structure`; empty for an operator that never
            changes.
    """

    layer: str
    constant: int
    labels: tuple[Tensor, ...]


class Bypassed(NamedTuple):
    """A module that leaves with a residual branch.

    Attributes:
        module: Its name.
        zero: It reads what stays, or is at the branch's end: zeros take its place. The others hand
            these on.
        items: Length of the tuple that it returns; 0 if it returns a tensor.
    """

    module: str
    zero: bool
    items: int


@dataclass(frozen=True)
class Branch:
    """A residual branch that can leave whole: a structure, and a group, of its own.

    Attributes:
        structure: Its number.
        bypassed: The modules that leave, in the order in which they run.
    """

    structure: int
    bypassed: tuple[Bypassed, ...]

    def holds(self, name: str) -> bool:
        """Whether a module or a tensor leaves with it."""
        return any(name == b.module or name.startswith(f"{b.module}.") for b in self.bypassed)


@dataclass(frozen=True, eq=False)
class StructureMap:
    """Every structure of a model. Frozen; made by :func:`decayprune.structures.tracing.trace`.

    Attributes:
        num_structures: ``S``.
        slices: Every cut dimension of every parameter and buffer, at most one per (name, dim), and
            the gates of branches.
        groups: Coupled widths; together they hold the structures ``0 .. S-1`` in order.
        refusals: What is not prunable and why.
        operators: What the model computes, for MACs.
        index: Position of each structure along its group's first row, shape ``(S,)``.
        unpinned: True where an all-zero structure is *not* a fixed point of training (an
            activation between maps 0 to something else) and has to be zeroed again after each
            step, shape ``(S,)``.
        attributes: Integer attributes of modules that follow a width: (module, attribute, labels,
            divisor): after a cut the attribute becomes ``kept(labels) // divisor``. Of a tuple that
            is the last item, or the one that ``attribute.2`` names.
        doubtful: Integer attributes that equal a width and may count it or not: (module, attribute,
            structures). A cut leaves them as they are.
        batch: Size of the example batch the MACs were counted with.
        branches: Residual branches that are structures, if they were asked for.
    """

    num_structures: int
    slices: tuple[Slice, ...]
    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]
    operators: tuple[Operator, ...]
    index: Tensor
    unpinned: Tensor
    attributes: tuple[tuple[str, str, Tensor, int], ...] = ()
    doubtful: tuple[tuple[str, str, Tensor], ...] = ()
    batch: int = 1
    branches: tuple[Branch, ...] = ()

    def __post_init__(self) -> None:
        # Of a width is said again and again which index is whose: equal vectors are held once.
        held: dict[tuple[torch.Size, torch.dtype, bytes], Tensor] = {}
        met: dict[int, Tensor] = {}

        def once(vector: Tensor) -> Tensor:
            if id(vector) not in met:
                key = vector.shape, vector.dtype, vector.contiguous().numpy().tobytes()
                met[id(vector)] = held.setdefault(key, vector)
            return met[id(vector)]

        shared: dict[str, object] = {
            "slices": tuple(
                replace(s, structure=once(s.structure), carrier=once(s.carrier))
                for s in self.slices
            ),
            "operators": tuple(replace(o, labels=(*map(once, o.labels),)) for o in self.operators),
            "attributes": tuple((m, a, once(v), d) for m, a, v, d in self.attributes),
            "doubtful": tuple((m, a, once(v)) for m, a, v in self.doubtful),
        }
        for name, value in shared.items():
            object.__setattr__(self, name, value)

    @cached_property
    def group_of(self) -> Tensor:
        """Group of each structure, shape ``(S,)``, int64."""
        sizes = torch.tensor([group.size for group in self.groups], dtype=torch.int64, device="cpu")
        return torch.repeat_interleave(torch.arange(len(self.groups), device="cpu"), sizes)

    def layer_of(self, structure: int) -> str:
        """Name of the module that produces a structure."""
        return self.groups[int(self.group_of[structure])].layer

    @cached_property
    def fingerprint(self) -> str:
        """A digest that two maps share exactly when their structures are the same."""
        digest = hashlib.sha256()
        for item in self.slices:
            digest.update(f"{item.name}|{item.dim}|{item.role}|".encode())
            digest.update(item.structure.numpy().tobytes())
        return digest.hexdigest()

    def without(self, refused: Mapping[int, str]) -> StructureMap:
        """The map with some groups taken out, their layers listed as refused.

        Args:
            refused: Reason for each group that is left alone, by its number.
        """
        hit = torch.zeros(len(self.groups), dtype=torch.bool, device="cpu")
        hit[list(refused)] = True
        stays = ~hit[self.group_of]
        renumber = torch.full((self.num_structures + 1,), FIXED, dtype=torch.int64, device="cpu")
        renumber[:-1][stays] = torch.arange(int(stays.sum()), device="cpu")

        groups, start = [], 0
        for group, gone in zip(self.groups, hit.tolist(), strict=True):
            if not gone:
                stop = start + group.size
                groups.append(replace(group, start=start, stop=stop))
                start = stop
        whole = {branch.structure for branch in self.branches}  # they have no width
        reasons = tuple(
            Refusal(group.layer, 0 if group.start in whole else group.size * group.width, why)
            for group, why in ((self.groups[number], refused[number]) for number in sorted(refused))
        )
        slices = tuple(
            Slice(
                s.name,
                s.dim,
                s.role,
                renumber[s.structure],
                s.carrier & (renumber[s.structure] >= 0),
            )
            for s in self.slices
        )
        return StructureMap(
            num_structures=start,
            slices=tuple(s for s in slices if bool((s.structure >= 0).any())),
            groups=tuple(groups),
            refusals=self.refusals + reasons,
            operators=tuple(
                Operator(o.layer, o.constant, tuple(renumber[v] for v in o.labels))
                for o in self.operators
            ),
            index=self.index[stays],
            unpinned=self.unpinned[stays],
            attributes=tuple((m, a, renumber[v], d) for m, a, v, d in self.attributes),
            doubtful=tuple((m, a, renumber[v]) for m, a, v in self.doubtful),
            batch=self.batch,
            branches=tuple(
                Branch(int(renumber[branch.structure]), branch.bypassed)
                for branch in self.branches
                if renumber[branch.structure] >= 0
            ),
        )
