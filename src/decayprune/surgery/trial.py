"""Trial cuts: what cannot be cut is found before any training begins, on a twin of the model.

No trace can see a width that a ``forward()`` has written into it as a number. A few structures of
every group are zeroed and cut out of the twin, and its outputs compared; the model itself is only
read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from decayprune.structures import edits, sums
from decayprune.structures.example import ExampleInputs, outputs
from decayprune.structures.structure_map import Role, StructureMap
from decayprune.structures.twin import named_tensors, own_storage, twin
from decayprune.surgery.compare import Comparison, compare
from decayprune.surgery.cut import cut
from decayprune.surgery.undo import Undo

_FEW = 16  # structures of a group cut on trial; odd widths would be slower to run
_ENOUGH = 48  # pixels along the shorter side of an image that trial cuts are made on
_FAILS = "forward() fails once a channel is removed"


def refuse_uncuttable(
    model: nn.Module,
    structures: StructureMap,
    example_inputs: ExampleInputs,
    roles: Collection[Role] = sums.WEIGHTS,
) -> StructureMap:
    """The map without the groups that cannot be cut: a few structures of each are tried.

    A forward() may compute with a width that it hard-codes, which no trace can see. A few
    structures of every group are zeroed, the outputs noted, and the structures cut out; a group
    for which this fails is refused with the reason.

    Args:
        model: Left as it is; a twin of it is cut.
        structures: Its structures.
        example_inputs: What to run it on.
        roles: Slices that are zero once a structure is pruned.
    """
    members = [number for number, group in enumerate(structures.groups) if group.size > 1]
    if not members:
        return structures

    def some(members: list[int]) -> Tensor:
        mask = torch.zeros(structures.num_structures, dtype=torch.bool)
        for group in (structures.groups[member] for member in members):
            mask[group.start : group.start + min(_FEW, group.size // 2)] = True
        return mask

    copy = twin(model)
    tensors = named_tensors(copy)
    pick = edits.picked(sums.labelled(structures, roles), some(members), tensors)
    own_storage([tensors[name] for name in pick.names])
    edits.zero_(pick, tensors)
    example_inputs, before = _fewer_pixels(copy, example_inputs)

    def try_(members: list[int]) -> str | None:
        found = attempt(copy, structures, some(members), example_inputs, before)
        if found.crash:
            return f"{_FAILS} ({found.crash})"
        return None if found.same else "removing a zeroed channel changes the model's output"

    failed = _search(structures, sorted(members, key=lambda m: _kind(structures, m)), try_)
    return structures.without(dict(failed)) if failed else structures


def guilty(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    before: Sequence[Tensor],
    tolerance: float | None,
) -> list[str]:
    """Groups whose cut alone already changes the outputs.

    Args:
        model: Left as it is; a twin of it is cut.
        structures: Its structures.
        gone: Which of them were to leave, bool, shape ``(S,)``; they are zero.
        example_inputs: What to run it on.
        before: The outputs of the uncut model.
        tolerance: Largest relative difference; None for what rounding explains.
    """
    copy, found = twin(model), []
    for number, group in enumerate(structures.groups):
        some = gone & (structures.group_of == number)
        if bool(some.any()):
            result = attempt(copy, structures, some, example_inputs, before, tolerance)
            if not result.same:
                found.append(group.layer)
    return found


def attempt(
    copy: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    before: Sequence[Tensor],
    tolerance: float | None = None,
) -> Comparison:
    """Cut a twin, compare its outputs, put it back.

    Args:
        copy: The twin.
        structures: Its structures.
        gone: Which of them leave, bool, shape ``(S,)``; they are zero.
        example_inputs: What to run it on.
        before: Its outputs before the cut.
        tolerance: Largest relative difference; None for what rounding explains.
    """
    undo = Undo()
    try:
        cut(undo, copy, structures, gone, on_trial=True)
        return compare(copy, example_inputs, before, tolerance)
    finally:
        undo.run()


def _fewer_pixels(model: nn.Module, inputs: ExampleInputs) -> tuple[ExampleInputs, list[Tensor]]:
    """Inputs for trial cuts and the outputs on them.

    Every n-th pixel of an image is enough to see a width written down as a number, and many times
    faster, if the model takes it.
    """
    step = (
        min(inputs.shape[2:]) // _ENOUGH if isinstance(inputs, Tensor) and inputs.dim() == 4 else 0
    )
    if step > 1:
        fewer = inputs[..., ::step, ::step].contiguous()
        with suppress(Exception):  # a position embedding, a linear layer after a flatten ...
            found = outputs(model, fewer)
            if found and all(bool(value.isfinite().all()) for value in found):
                return fewer, found
    return inputs, outputs(model, inputs)


def _search(
    structures: StructureMap, members: list[int], try_: Callable[[list[int]], str | None]
) -> list[tuple[int, str]]:
    """(group, reason) of those that fail, by halving: cheap where nothing or little fails."""
    reason = try_(members)
    if reason is None:
        return []
    if len(members) == 1:
        return [(members[0], reason)]
    first, last = _kind(structures, members[0]), _kind(structures, members[-1])
    cut = len(members) // 2
    if first == last:
        # Forty blocks run the same code: what fails in the first and in the last fails in all.
        ends = [try_([members[0]]), try_([members[-1]])]
        if all(end is not None and end.startswith(_FAILS) for end in ends):
            return [(member, ends[0] or "") for member in members]
    else:
        kinds = [_kind(structures, member) for member in members]
        edges = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
        cut = min(edges, key=lambda edge: abs(edge - cut))
    failed = _search(structures, members[:cut], try_) + _search(structures, members[cut:], try_)
    # Each part works and both together do not: nobody is to blame alone, so all are refused.
    return failed or [(member, reason) for member in members]


def _kind(structures: StructureMap, group: int) -> str:
    """The kinds of layers in a group, whatever their shapes."""
    return re.sub(r"\d+", "", structures.groups[group].family)
