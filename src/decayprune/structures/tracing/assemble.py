"""Lay the solution of a traced pass out as a :class:`StructureMap`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from decayprune.structures.structure_map import FIXED, Group, Operator, Refusal, Slice, StructureMap
from decayprune.structures.tracing.marks import LabelledDim
from decayprune.structures.tracing.remembered import remembered
from decayprune.structures.tracing.reparametrised import layer_of
from decayprune.structures.tracing.solve import Solution, solve
from decayprune.structures.tracing.tape import Tape


def assemble(tape: Tape, ignored: set[str], batch: int) -> StructureMap:
    """The structures that a tape tells of.

    Args:
        tape: The record of the traced pass(es).
        ignored: Names of modules whose produced widths are left alone.
        batch: Size of the example batch.
    """
    solution = solve(tape, ignored)
    attributes = _attributes(tape, solution)
    followed, doubtful = remembered(tape, solution, attributes)
    return StructureMap(
        num_structures=len(solution.group),
        slices=_slices(solution),
        groups=_groups(tape, solution),
        refusals=_refusals(tape, solution),
        operators=tuple(
            Operator(layer, constant, tuple(solution.structures(v) for v in labels))
            for layer, constant, labels in tape.operators
        ),
        index=torch.from_numpy(solution.index),
        unpinned=_unpinned(tape, solution),
        attributes=(*attributes, *followed),
        doubtful=tuple(doubtful),
        batch=batch,
    )


def _slices(solution: Solution) -> tuple[Slice, ...]:
    found = []
    for item in solution.incidence.dims:
        structure = solution.structures(item.labels)
        prunable = structure >= 0
        if not bool(prunable.any()):
            continue
        carried = solution.carried.get((item.name, item.dim))
        if carried is None:
            carrier = torch.zeros_like(prunable)
        else:
            own = carried[solution.component[item.labels.numpy()]]
            carrier = torch.from_numpy(own).logical_and_(prunable)
        found.append(Slice(item.name, item.dim, item.role, structure, carrier))
    return tuple(found)


def _attributes(tape: Tape, solution: Solution) -> tuple[tuple[str, str, Tensor, int], ...]:
    """Each (module, attribute) once, where something of its width can leave."""
    read = [
        (
            *reading.origin,
            _by_row(solution.structures(reading.labels)).repeat_interleave(
                reading.factor.denominator
            ),
            reading.factor.numerator,
        )
        for reading in tape.readings.found
    ]
    told = [(m, name, solution.structures(labels), n) for m, name, labels, n in tape.attributes]
    first: dict[tuple[str, str], tuple[str, str, Tensor, int]] = {}
    for item in (*told, *read):
        first.setdefault(item[:2], item)
    return tuple(item for item in first.values() if bool((item[2] >= 0).any()))


def _by_row(structures: Tensor) -> Tensor:
    """The structure that a whole row belongs to; where it holds several, a cut leaves some."""
    same = (structures == structures[:, :1]).all(1)
    return torch.where(same, structures[:, 0], FIXED)


def _unpinned(tape: Tape, solution: Solution) -> Tensor:
    mask = torch.zeros(len(solution.group), dtype=torch.bool, device="cpu")
    for labels in tape.unpinned:
        structure = solution.structures(labels)
        mask[structure[structure >= 0]] = True
    return mask


def _groups(tape: Tape, solution: Solution) -> tuple[Group, ...]:
    count = int(solution.group.max(initial=-1)) + 1
    incidence = solution.incidence
    starts = np.searchsorted(solution.group, np.arange(count)).tolist()
    stops = np.searchsorted(solution.group, np.arange(count), side="right").tolist()
    members: list[list[LabelledDim]] = [[] for _ in range(count)]
    first = np.full(len(solution.group) + 1, FIXED)  # as all others of its group it lies; of -1 too
    first[starts] = np.arange(count)
    group = first[solution.number[incidence.component]]
    for one, on in zip(group[group >= 0].tolist(), incidence.on[group >= 0].tolist(), strict=True):
        members[one].append(incidence.dims[on])
    kinds = {id(item): _kind(tape, item) for item in incidence.dims}
    channels = _channels(tape, solution)
    groups = []
    for own, start, stop in zip(members, starts, stops, strict=True):
        rows = [item for item in own if item.role == "row"]
        others = [item for item in own if item.role != "row"]
        layers = tuple(dict.fromkeys(layer_of(c.name) for c in [*rows, *others]))
        family = "; ".join(sorted(kinds[id(item)] for item in own))
        widths = int(solution.width[start]), int(channels[start])
        groups.append(Group(layers[0], start, stop, layers, family, *widths))
    return tuple(groups)


def _channels(tape: Tape, solution: Solution) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Channels of each structure where they are fewest: gates and halves share one, shape (S,)."""
    incidence = solution.incidence
    counts = [
        # A grouped convolution has one weight for the same place in every group.
        item.role in ("row", "column")
        and not (item.dim == 1 and _convolution_groups(tape, item) > 1)
        for item in incidence.dims
    ]
    number = solution.number[incidence.component]
    on = (number >= 0) & np.array(counts, bool)[incidence.on]
    least = np.full(len(solution.group), np.iinfo(np.int64).max)
    np.minimum.at(least, number[on], incidence.count[on])
    return np.asarray(np.minimum(least, solution.width))


def _convolution_groups(tape: Tape, item: LabelledDim) -> int:
    return int(getattr(tape.modules[item.name.rpartition(".")[0]], "groups", 1))


def _kind(tape: Tape, item: LabelledDim) -> str:
    """What a slice is, without its name: equal at isomorphic places of a model."""
    layer, _, leaf = item.name.rpartition(".")
    tensor = tape.parameters.get(item.name)
    shape = () if tensor is None else tuple(tensor.shape)
    others = tuple(n for d, n in enumerate(shape) if d != item.dim)
    groups = _convolution_groups(tape, item)
    return (
        f"{type(tape.modules[layer]).__name__}.{leaf}[{item.dim}] {item.role} {others} / {groups}"
    )


def _refusals(tape: Tape, solution: Solution) -> tuple[Refusal, ...]:
    """Every produced width that stays, and every layer that nothing is known of."""
    refused = []
    for item in solution.incidence.dims:
        parameter = tape.parameters.get(item.name)
        if item.role != "row" or parameter is None or parameter.dim() < 2:
            continue
        why = solution.why[solution.component[item.labels.numpy()]]
        if not (why >= 0).any():
            continue
        for reason, width in zip(*np.unique(why[why >= 0], return_counts=True), strict=True):
            layer = layer_of(item.name)
            refused.append(Refusal(layer, int(width), solution.reasons[reason]))
    refused += [Refusal(*item) for item in dict.fromkeys(tape.refused)]
    for name in tape.unseen():
        own = tape.modules[name].parameters(recurse=False)
        width = next((p.shape[0] for p in own if p.dim()), 0)
        refused.append(Refusal(name, width, "not reached by the example inputs"))
    return tuple(refused)
