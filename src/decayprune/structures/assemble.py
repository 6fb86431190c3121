"""From the tape of a traced pass to a :class:`StructureMap`.

The connected components of the labels are the structures; a component stays if anything said so.
Structures that share exactly the same slices form a group. All of it is arithmetic on vectors of
labels: the cost does not grow with a Python loop over structures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decayprune.structures.labels import compress, varying
from decayprune.structures.structure_map import (
    FIXED,
    Group,
    Operator,
    Refusal,
    Slice,
    StructureMap,
)
from decayprune.structures.tape import Cut, Key, Tape

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class _Solution:
    """Components after everything is known: which are structures, in which order."""

    component: Array  # (labels,) component of each label
    why: Array  # (components,) position of the reason, < 0 where nothing fixed it
    reasons: list[str]
    structure: Tensor  # (labels,) structure of each label, FIXED where it stays
    group: Array  # (S,) group of each structure
    position: Array  # (S,) position along all rows laid end to end
    multiplicity: Array  # (S,) indices per structure along its first row


def assemble(tape: Tape, ignored: set[str], batch: int) -> StructureMap:
    """Decide what is prunable and lay it out.

    Args:
        tape: The record of the traced pass(es).
        ignored: Names of modules whose produced widths are left alone.
        batch: Size of the example batch.
    """
    _fix_by_parameter(tape, ignored)
    for labels, layer in tape.mixed:
        kind = type(tape.modules[layer]).__name__ if layer in tape.modules else "a normaliser"
        tape.partition.fix(labels, f"mixed by {kind} `{layer}`")
    _make_rectangular(tape)
    component, why, reasons = tape.partition.solve()
    for cut in tape.cuts.values():
        whole = np.unique(component[cut.labels.numpy()])
        if len(whole) == 1 and why[whole[0]] == -1:
            tape.partition.fix(cut.labels, f"all of `{cut.name}` would leave together")
    component, why, reasons = tape.partition.solve()
    carried = _carried(tape, component)
    for reason, lost in (("produced by no layer", _without_rows), ("nothing reads it", _unread)):
        reasons.append(reason)
        free = why == -1
        why[lost(tape, component, carried) & free] = len(reasons) - 1
    solution = _number(tape, component, why, reasons)
    return StructureMap(
        num_structures=len(solution.group),
        slices=_slices(tape, solution, carried),
        groups=_groups(tape, solution),
        refusals=_refusals(tape, solution),
        operators=tuple(
            Operator(layer, constant, tuple(solution.structure[v] for v in labels))
            for layer, constant, labels in tape.operators
        ),
        index=_index(tape, solution),
        unpinned=_unpinned(tape, solution),
        attributes=tuple(
            (module, name, structure, divisor)
            for module, name, labels, divisor in _once(tape.attributes)
            if bool(((structure := solution.structure[labels]) >= 0).any())
        ),
        batch=batch,
    )


def _once(attributes: list[tuple[str, str, Tensor, int]]) -> list[tuple[str, str, Tensor, int]]:
    """Each (module, attribute) once: a module that is called twice has one width."""
    return list({(item[0], item[1]): item for item in reversed(attributes)}.values())[::-1]


# ---- what stays ------------------------------------------------------------------------------


def _fix_by_parameter(tape: Tape, ignored: set[str]) -> None:
    """Widths the user asked to leave alone, and those with a frozen parameter."""
    for cut in tape.cuts.values():
        if cut.role == "row" and cut.name.rpartition(".")[0] in ignored:
            tape.partition.fix(cut.labels, "ignored", first=True)
    for cut in tape.cuts.values():
        parameter = tape.parameters.get(cut.name)
        if parameter is not None and not parameter.requires_grad:
            tape.partition.fix(cut.labels, f"frozen: `{cut.name}` has requires_grad=False")


def _make_rectangular(tape: Tape) -> None:
    """Where a reshape spread a width over two dimensions, only one of them can shrink.

    What still varies along several dimensions once everything else is known loses the same
    offsets everywhere: it is unified along all but the last of them.
    """
    seen = set()
    partition = tape.partition
    component: Array | None = None
    for matrix in tape.matrices:
        token = (tuple(matrix.shape), matrix.numpy().tobytes())
        if token in seen:
            continue
        seen.add(token)
        if component is None:
            component, why, _ = partition.solve()
            settled = np.where(why[component] == -1, component, -1)
        values = torch.from_numpy(settled[matrix.numpy()])
        dims = varying(compress(values))
        if len(dims) > 1:
            for dim in dims[:-1]:
                first = matrix.narrow(dim, 0, 1).expand(matrix.shape)
                partition.unify(matrix, first, "lies beside a fixed width in a reshape")
            component = None
        elif not dims and bool((values >= 0).any()):
            partition.fix(matrix, "reshapes and chunks tie all of the width together")


def _without_rows(tape: Tape, component: Array, carried: dict[Key, Array]) -> Array:
    """Components that no layer produces (a raw parameter alone)."""
    lost = np.ones(int(component.max()) + 1, bool)
    for cut in tape.cuts.values():
        if cut.role == "row":
            lost[component[cut.labels.numpy()]] = False
    return lost


def _unread(tape: Tape, component: Array, carried: dict[Key, Array]) -> Array:
    """Components that nothing carries: scaling none of their slices scales the function."""
    lost = np.ones(int(component.max()) + 1, bool)
    for key, found in carried.items():
        own = np.zeros_like(lost)
        own[component[tape.cuts[key].labels.numpy()]] = True
        lost[own & found] = False
    return lost


# ---- carriers --------------------------------------------------------------------------------


def _carried(tape: Tape, component: Array) -> dict[Key, Array]:
    """Per dimension of a parameter: the components that its scaling scales, as a mask."""
    count = int(component.max()) + 1
    carried: dict[Key, Array] = {}
    members = [_mask(labels, component, count) for _, labels in tape.sources]
    for event in tape.consumptions:
        consumed = _mask(event.labels, component, count)
        scaled = np.zeros(count, bool)
        bare = np.zeros(count, bool)
        for source in event.sources:
            key, _ = tape.sources[source]
            hit = members[source] & consumed
            if key is None:
                bare |= hit
            else:
                scaled |= hit
                carried[key] = carried.get(key, np.zeros(count, bool)) | hit
        own = bare | (consumed & ~scaled)
        if event.column is not None and own.any():
            carried[event.column] = carried.get(event.column, np.zeros(count, bool)) | own
    return carried


def _mask(labels: Tensor, component: Array, count: int) -> Array:
    labels = labels[labels != 0]
    mask = np.zeros(count, bool)
    mask[component[labels.numpy()]] = True
    return mask


# ---- numbering -------------------------------------------------------------------------------


def _number(tape: Tape, component: Array, why: Array, reasons: list[str]) -> _Solution:
    """Number the free components: by group, inside a group along its first row."""
    count = len(why)
    free = why == -1
    signature = np.zeros(count, np.uint64)
    position = np.full(count, np.iinfo(np.int64).max)
    multiplicity = np.zeros(count, np.int64)
    random = np.random.default_rng(0)
    offset = 0
    for cut in tape.cuts.values():
        members, times = np.unique(component[cut.labels.numpy()], return_counts=True)
        weight = random.integers(1, 2**63, dtype=np.uint64)
        signature[members] += weight * times.astype(np.uint64)
        if cut.role == "row":
            ids, first = np.unique(component[cut.labels.numpy()], return_index=True)
            new = position[ids] > offset + first
            multiplicity[ids[new]] = times[new]
            position[ids[new]] = (offset + first)[new]
            offset += cut.labels.numel()
    chosen = np.flatnonzero(free)
    _, inverse = np.unique(signature[chosen], return_inverse=True)
    first_of_group = np.full(int(inverse.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first_of_group, inverse, position[chosen])
    order = np.lexsort((position[chosen], first_of_group[inverse]))
    chosen, inverse = chosen[order], inverse[order]
    number = np.full(count, FIXED, np.int64)
    number[chosen] = np.arange(len(chosen))
    group = np.cumsum(np.diff(inverse, prepend=inverse[:1]) != 0)
    return _Solution(
        component=component,
        why=why,
        reasons=reasons,
        structure=torch.from_numpy(number[component]),
        group=group,
        position=position[chosen],
        multiplicity=multiplicity[chosen],
    )


def _index(tape: Tape, solution: _Solution) -> Tensor:
    """Position of each structure along its first row."""
    starts = np.cumsum([0, *(c.labels.numel() for c in tape.cuts.values() if c.role == "row")])
    row = np.searchsorted(starts, solution.position, side="right") - 1
    return torch.from_numpy(solution.position - starts[row])


def _unpinned(tape: Tape, solution: _Solution) -> Tensor:
    mask = torch.zeros(len(solution.group), dtype=torch.bool)
    for labels in tape.unpinned:
        structure = solution.structure[labels]
        mask[structure[structure >= 0]] = True
    return mask


def _slices(tape: Tape, solution: _Solution, carried: dict[Key, Array]) -> tuple[Slice, ...]:
    found = []
    for key, cut in tape.cuts.items():
        structure = solution.structure[cut.labels]
        if not bool((structure >= 0).any()):
            continue
        carrier = torch.zeros(structure.shape, dtype=torch.bool)
        if key in carried:
            hit = carried[key][solution.component[cut.labels.numpy()]]
            carrier = torch.from_numpy(hit) & (structure >= 0)
        found.append(Slice(cut.name, cut.dim, cut.role, structure, carrier))
    return tuple(found)


# ---- groups and refusals ---------------------------------------------------------------------


def _groups(tape: Tape, solution: _Solution) -> tuple[Group, ...]:
    count = int(solution.group.max(initial=-1)) + 1
    members: list[list[Cut]] = [[] for _ in range(count)]
    for cut in tape.cuts.values():
        structure = solution.structure[cut.labels]
        for group in np.unique(solution.group[structure[structure >= 0].numpy()]):
            members[group].append(cut)
    starts = np.searchsorted(solution.group, np.arange(count))
    stops = np.searchsorted(solution.group, np.arange(count), side="right")
    groups = []
    for cuts, start, stop in zip(members, starts.tolist(), stops.tolist(), strict=True):
        rows = [cut for cut in cuts if cut.role == "row"]
        others = [cut for cut in cuts if cut.role != "row"]
        layers = tuple(dict.fromkeys(c.name.rpartition(".")[0] for c in [*rows, *others]))
        family = "; ".join(sorted(_kind(tape, cut) for cut in cuts))
        width = int(solution.multiplicity[start])
        groups.append(Group(layers[0], start, int(stop), layers, family, width))
    return tuple(groups)


def _kind(tape: Tape, cut: Cut) -> str:
    """What a slice is, without its name: equal for isomorphic places of a model."""
    layer, _, leaf = cut.name.rpartition(".")
    tensor = tape.parameters.get(cut.name)
    shape = () if tensor is None else tuple(tensor.shape)
    others = tuple(n for d, n in enumerate(shape) if d != cut.dim)
    groups = getattr(tape.modules[layer], "groups", 1)
    return f"{type(tape.modules[layer]).__name__}.{leaf}[{cut.dim}] {cut.role} {others} / {groups}"


def _refusals(tape: Tape, solution: _Solution) -> tuple[Refusal, ...]:
    """Every produced width that stays, and every layer that nothing is known of."""
    refused = []
    for cut in tape.cuts.values():
        parameter = tape.parameters.get(cut.name)
        if cut.role != "row" or parameter is None or parameter.dim() < 2:
            continue
        why = solution.why[solution.component[cut.labels.numpy()]]
        for reason, width in zip(*np.unique(why[why >= 0], return_counts=True), strict=True):
            layer = cut.name.rpartition(".")[0]
            refused.append(Refusal(layer, int(width), solution.reasons[reason]))
    refused += [Refusal(*item) for item in tape.refused]
    for name in tape.unseen():
        width = next(
            (p.shape[0] for p in tape.modules[name].parameters(recurse=False) if p.dim()), 0
        )
        refused.append(Refusal(name, width, "not reached by the example inputs"))
    return tuple(refused)
