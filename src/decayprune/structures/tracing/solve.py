"""From what a traced pass said to what is a structure, what stays, and who carries whom.

The connected components of the labels are the structures; a component stays if anything said so.
All of it is arithmetic on vectors: nothing loops over structures in Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decayprune.structures.exact.swap import stand_in
from decayprune.structures.structure_map import FIXED
from decayprune.structures.tracing.labels import compress, varying
from decayprune.structures.tracing.marks import Key, LabelledDim
from decayprune.structures.tracing.reparametrised import layer_of
from decayprune.structures.tracing.tape import Tape

Array = np.ndarray[Any, np.dtype[Any]]
_Memory = tuple[int, torch.Size, tuple[int, ...]]

_FREE = -1  # value of ``why`` where nothing fixed a component
_LAST = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Incidence:
    """Which components lie on which labelled dimensions of parameters, as pairs.

    Attributes:
        dims: The labelled dimensions, in the order met.
        component: Component of each pair.
        on: Position in ``dims`` of the dimension of each pair, ascending.
        count: Indices of the dimension that belong to the component.
        first: The first of them, counted along all labelled dimensions laid end to end.
        starts: Where each labelled dimension starts in that count.
    """

    dims: list[LabelledDim]
    component: Array
    on: Array
    count: Array
    first: Array
    starts: Array

    def rows(self) -> Array:
        """Which pairs lie on a producer's row."""
        return np.array([item.role == "row" for item in self.dims], bool)[self.on]


@dataclass(frozen=True, eq=False)
class Solution:
    """What is prunable, numbered.

    Attributes:
        incidence: Components and labelled dimensions.
        component: Component of each label.
        why: Per component: position of its reason in ``reasons``, negative where it has none.
        reasons: Why components stay, in words.
        carried: Per labelled dimension: mask of the components that its scaling scales.
        number: Structure of each component, :data:`FIXED` where it stays.
        group: Group of each structure.
        index: Position of each structure along its first row.
        width: Indices per structure along its first row.
    """

    incidence: Incidence
    component: Array
    why: Array
    reasons: list[str]
    carried: dict[Key, Array]
    number: Array
    group: Array
    index: Array
    width: Array
    _told: dict[_Memory, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @cached_property
    def of_label(self) -> Array:
        """Structure of each label handed out."""
        return np.asarray(self.number[self.component])

    def structures(self, labels: Tensor) -> Tensor:
        """Structure of each label, :data:`FIXED` where it stays; of equal memory told once."""
        if not labels.is_contiguous():
            return torch.from_numpy(self.of_label[labels.numpy()])
        if _memory(labels) not in self._told:
            found = torch.from_numpy(self.of_label[labels.numpy()])
            self._told[_memory(labels)] = labels, found  # kept alive, so that it stays its memory
        return self._told[_memory(labels)][1]


def solve(tape: Tape, ignored: set[str]) -> Solution:
    """Decide which components are structures.

    Args:
        tape: The record of the traced pass(es).
        ignored: Names of modules whose produced widths are left alone.
    """
    _fix_by_parameter(tape, ignored)
    _fix_mixed(tape)
    _make_rectangular(tape)
    component, why, reasons = tape.partition.solve()
    incidence = _incidence(tape, component)
    carried = _carried(tape, component)
    doubts = (
        ("all of the width would leave together", _alone(incidence, len(why))),
        ("produced by no layer", _unproduced(incidence, len(why))),
        ("nothing reads it", _unread(incidence, carried, len(why))),
    )
    for reason, lost in doubts:
        why[lost & (why == _FREE)] = len(reasons)
        reasons.append(reason)
    return Solution(incidence, component, why, reasons, carried, *_number(incidence, why == _FREE))


# ---- what stays ------------------------------------------------------------------------------


def _fix_by_parameter(tape: Tape, ignored: set[str]) -> None:
    """Widths the user asked to leave alone, and those with a frozen parameter.

    A frozen table of positions leaves with the others if they are trained: what it adds to a width
    is no more than a constant.
    """
    for item in tape.labelled_dims.values():
        if item.role == "row" and layer_of(item.name) in ignored:
            tape.partition.fix(item.labels, "ignored", first=True)
    parameters = tape.parameters
    items = [item for item in tape.labelled_dims.values() if item.name in parameters]
    if all(parameters[item.name].requires_grad for item in items):
        return
    component = tape.partition.components()
    rows = [i.labels for i in items if i.role == "row" and parameters[i.name].requires_grad]
    trained = np.unique(
        component[torch.cat([*rows, torch.zeros(0, dtype=torch.int64, device="cpu")]).numpy()]
    )
    for item in items:
        if parameters[item.name].requires_grad:
            continue
        also = item.table & np.isin(component[item.labels.numpy()], trained)
        labels = torch.where(torch.from_numpy(also), 0, item.labels)
        tape.partition.fix(labels, f"frozen (`{item.name}` has requires_grad=False)")


def _fix_mixed(tape: Tape) -> None:
    """A normaliser that mixes channels notices that some are gone, unless it can count them."""
    for labels, layer in tape.mixed:
        if stand_in(tape.modules[layer]) is None:
            kind = type(tape.modules[layer]).__name__
            reason = f"mixed by `{layer}`, a {kind}, which cannot count channels that are gone"
            tape.partition.fix(labels, reason)


def _make_rectangular(tape: Tape) -> None:
    """Where a reshape spread a width over several dimensions, only one of them can shrink.

    That is the innermost one: what varies along others too loses the same offsets everywhere. It
    is an outer one only where whole heads of an attention leave; any other number of groups is
    taken for a constant of the model's code.
    """
    # Fixing one width may leave another one ragged, so this goes on until nothing new is said. It
    # ends, because each change ties or fixes labels that were free and apart.
    distinct = {(tuple(m.shape), m.numpy().tobytes()): m for m in tape.matrices}
    changed = bool(distinct)
    while changed:
        changed = False
        settled, heads = _settled(tape)
        for matrix in distinct.values():
            if _straighten(tape, matrix, settled[matrix.numpy()], heads):
                changed = True
                settled, heads = _settled(tape)


def _settled(tape: Tape) -> tuple[Array, Array]:
    """Component of each label, :data:`FIXED` where it stays; components that are whole heads."""
    component, why, _ = tape.partition.solve()
    settled = np.where(why[component] == _FREE, component, FIXED)
    heads = [settled[labels.numpy()] for labels in tape.heads]
    return settled, np.concatenate([*heads, np.zeros(0, np.int64)])


def _straighten(tape: Tape, matrix: Tensor, component: Array, heads: Array) -> bool:
    """Make one reshaped width rectangular; whether that took anything new."""
    free = component[component != FIXED]
    dims = varying(compress(torch.from_numpy(component)))
    if not free.size or dims == varying(matrix)[-1:]:
        return False
    if len(dims) > 1:
        for dim in dims[:-1]:
            first = matrix.narrow(dim, 0, 1).expand(matrix.shape)
            tape.partition.unify(matrix, first, "lies beside a fixed width in a reshape")
        return True
    if np.isin(free, heads).all():
        return False
    tape.partition.fix(matrix, "a reshape divides it into a fixed number of parts")
    return True


def _incidence(tape: Tape, component: Array) -> Incidence:
    dims = list(tape.labelled_dims.values())
    # A width is told of again and again: rows, four vectors of a normaliser, the columns behind.
    vectors = {_memory(item.labels): item.labels.numpy() for item in dims}
    place = {key: number for number, key in enumerate(vectors)}
    own = [component[labels] for labels in vectors.values()] or [np.zeros(0, np.int64)]
    ends = np.cumsum([0, *(len(components) for components in own)])
    owner = np.repeat(np.arange(len(own)), np.diff(ends))
    every = np.concatenate(own)
    # One integer per (vector, component), so that unique() sorts by the former, then the latter.
    pairs = owner * (int(component.max()) + 1) + every
    _, first, count = np.unique(pairs, return_index=True, return_counts=True)
    owner, every = owner[first], every[first]
    where = np.searchsorted(owner, np.arange(len(own) + 1))
    used = np.array([place[_memory(item.labels)] for item in dims], np.int64)
    on = np.repeat(np.arange(len(dims)), np.diff(where)[used])
    pair = np.concatenate([np.arange(where[v], where[v + 1]) for v in used] or [first[:0]])
    starts = np.cumsum([0, *(item.labels.numel() for item in dims)])[:-1]
    first = (first - ends[owner])[pair] + starts[on]
    return Incidence(dims, every[pair], on, count[pair], first, starts)


def _memory(labels: Tensor) -> _Memory:
    """Where labels lie, and how: they are never written to."""
    return labels.data_ptr(), labels.shape, labels.stride()


def _alone(incidence: Incidence, count: int) -> Array:
    """Components that are all of some width: cutting them would leave nothing."""
    components_on = np.bincount(incidence.on, minlength=len(incidence.dims))
    mask = np.zeros(count, bool)
    mask[incidence.component[components_on[incidence.on] == 1]] = True
    return mask


def _unproduced(incidence: Incidence, count: int) -> Array:
    """Components that no layer produces: a raw parameter alone."""
    mask = np.ones(count, bool)
    mask[incidence.component[incidence.rows()]] = False
    return mask


def _unread(incidence: Incidence, carried: dict[Key, Array], count: int) -> Array:
    """Components that nothing carries: scaling none of their slices scales the function."""
    mask = np.ones(count, bool)
    ends = np.searchsorted(incidence.on, np.arange(len(incidence.dims) + 1))
    for number, item in enumerate(incidence.dims):
        found = carried.get((item.name, item.dim))
        if found is not None:
            own = incidence.component[ends[number] : ends[number + 1]]
            mask[own[found[own]]] = False
    return mask


# ---- carriers --------------------------------------------------------------------------------


def _carried(tape: Tape, component: Array) -> dict[Key, Array]:
    """Per labelled dimension: the components that its scaling scales, as a mask over components.

    Where channels are consumed, whatever scales the consumed activation carries; channels that
    nothing scales are carried by the consumer's own columns.
    """
    count = int(component.max()) + 1
    carried: dict[Key, Array] = {}
    members = [_mask(labels, component, count) for _, labels in tape.sources]
    for consumption in tape.consumptions:
        consumed = _mask(consumption.labels, component, count)
        scaled, bare = np.zeros(count, bool), np.zeros(count, bool)
        for source in consumption.sources:
            key = tape.sources[source][0]
            hit = members[source] & consumed
            if key is None:
                bare |= hit
            else:
                scaled |= hit
                carried[key] = carried.get(key, False) | hit
        # The columns scale what they read linearly; they carry where nothing before them does, and
        # beside it where one of several paths into the activation has no scale of its own.
        own = consumed if consumption.normed else bare | (consumed & ~scaled)
        if consumption.column is not None and own.any():
            carried[consumption.column] = carried.get(consumption.column, False) | own
    return carried


def _mask(labels: Tensor, component: Array, count: int) -> Array:
    mask = np.zeros(count, bool)
    mask[component[labels.numpy()]] = True
    mask[component[0]] = False  # 0 is "no label", and no structure even where it met one
    return mask


# ---- numbering -------------------------------------------------------------------------------


def _number(incidence: Incidence, free: Array) -> tuple[Array, Array, Array, Array]:
    """Number the free components: by group, inside a group along its first row.

    Two components belong to one group when they lie on the same dimensions of the same
    parameters, with as many indices each:
    their random signatures are equal.

    Returns:
        Structure of each component; group, index along the first row and width of each structure.
    """
    # A random number per dimension, summed with multiplicity modulo 2**64: sets that differ have
    # equal sums once in 2**64, and no set has to be built or compared in Python.
    weights = np.random.default_rng(0).integers(1, 2**63, len(incidence.dims), dtype=np.uint64)
    signature = np.zeros(len(free), np.uint64)
    np.add.at(
        signature, incidence.component, weights[incidence.on] * incidence.count.astype(np.uint64)
    )
    position = np.full(len(free), _LAST)
    rows = np.flatnonzero(incidence.rows())[::-1]  # assigned in reverse: the first one stays
    position[incidence.component[rows]] = incidence.first[rows]
    pair = np.zeros(len(free), np.int64)
    pair[incidence.component[rows]] = rows

    chosen = np.flatnonzero(free)
    _, group = np.unique(signature[chosen], return_inverse=True)
    start = np.full(int(group.max(initial=-1)) + 1, _LAST)
    np.minimum.at(start, group, position[chosen])
    order = np.lexsort((position[chosen], start[group]))
    chosen, group = chosen[order], group[order]

    number = np.full(len(free), FIXED, np.int64)
    number[chosen] = np.arange(len(chosen))
    group = np.cumsum(np.diff(group, prepend=group[:1]) != 0)
    first = pair[chosen]
    index = position[chosen] - incidence.starts[incidence.on[first]]
    return number, group, index, incidence.count[first]
