"""Trial cuts: what cannot be cut is found before any training begins, on a twin of the model.

No trace can see a width that a ``forward()`` has written into it as a number. Most of every
group is zeroed and cut out of the twin, and its outputs compared; the model itself is only
read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from decayprune.structures import edits, sums
from decayprune.structures.example import ExampleInputs
from decayprune.structures.structure_map import Role, StructureMap
from decayprune.structures.twin import named_tensors, twin
from decayprune.surgery.compare import (
    Comparison,
    Remembered,
    compare,
    nothing_to_compare,
    remember,
    remember_training,
    tolerance_for,
)
from decayprune.surgery.cut import Stays, cut, stays_of
from decayprune.surgery.revealing import reveal_
from decayprune.surgery.undo import Undo

_UNEVEN = 16  # numbers of structures, at most, between which chance decides for a group
_WIDE = 64  # structures of a group of which a quarter is enough to tell
_ENOUGH = 32  # pixels along the shorter side of an image that trial cuts are made on
_FAILS = "forward() fails"


def refuse_uncuttable(
    model: nn.Module,
    structures: StructureMap,
    example_inputs: ExampleInputs,
    roles: Collection[Role] = sums.WEIGHTS,
) -> StructureMap:
    """The map without the groups that cannot be cut: some structures of each are tried.

    A forward() may compute with a width that it hard-codes, which no trace can see. Some
    structures of every group, as many as chance has it, are zeroed, the outputs noted, and the
    structures cut out; a group for which this fails is refused with the reason. Widths that have
    to stay equal to each other are found because no two groups lose the same number every time.

    Args:
        model: Left as it is; a twin of it is cut.
        structures: Its structures.
        example_inputs: What to run it on.
        roles: Slices that are zero once a structure is pruned.

    Raises:
        ValueError: The outputs hold nothing that could be compared.
    """
    members = [number for number, group in enumerate(structures.groups) if group.size > 1]
    if not members:
        return structures
    members.sort(key=lambda member: _kind(structures, member))
    one, other = _drawn(structures)
    bench = _Bench(model, structures, one | other, example_inputs, roles)
    if bench.hold(one, other):
        return structures
    failed = dict(_search(structures, members, lambda m: bench.reason(m, one)))
    left = [member for member in members if member not in failed]
    if left:
        again = _search(structures, left, lambda m: bench.reason(m, other, training=False))
        failed.update(again)
    return structures.without(failed) if failed else structures


def refuse_unremovable(
    model: nn.Module, structures: StructureMap, example_inputs: ExampleInputs
) -> StructureMap:
    """The map without the residual branches that cannot be removed.

    All are zeroed and removed at once, and by halves if that fails.

    Args:
        model: Left as it is; branches of a twin are removed.
        structures: Its structures; there are branches among them.
        example_inputs: What to run it on.
    """
    gone = torch.zeros(structures.num_structures, dtype=torch.bool, device="cpu")
    gone[[branch.structure for branch in structures.branches]] = True
    members = structures.group_of[gone].tolist()
    bench = _Bench(model, structures, gone, example_inputs, sums.WEIGHTS)
    failed = dict(_search(structures, members, lambda m: bench.reason(m, gone)))
    return structures.without(failed) if failed else structures


def problem_of(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    roles: Collection[Role] = sums.WEIGHTS,
) -> str:
    """Why the very cut that was chosen cannot be made, found before its decay has cost anything.

    Args:
        model: Left as it is; a twin of it is cut.
        structures: Its structures.
        gone: Which of them are to leave, bool, shape ``(S,)``; zero or not yet.
        example_inputs: What to run it on.
        roles: Slices that are zero once a structure is pruned.

    Returns:
        The reason and the groups that fail alone; empty if the cut can be made.
    """
    bench = _Bench(model, structures, gone, example_inputs, roles)
    members = sorted(set(structures.group_of[gone].tolist()))
    reason = bench.reason(members, gone)
    if reason is None:
        return ""
    alone = [structures.groups[m].layer for m in members if bench.reason([m], gone) is not None]
    return f"{reason}. Groups that fail alone: {', '.join(alone) or 'none'}"


class _Bench:
    """A twin with some structures zeroed, and what it returns: cuts are tried on it.

    Args:
        model: Left as it is.
        structures: Its structures.
        gone: Which of them are zeroed, bool, shape ``(S,)``.
        example_inputs: What to run it on.
        roles: Slices that are zeroed.
    """

    def __init__(
        self,
        model: nn.Module,
        structures: StructureMap,
        gone: Tensor,
        example_inputs: ExampleInputs,
        roles: Collection[Role],
    ) -> None:
        self._copy, self._structures = twin(model), structures
        reveal_(self._copy)
        _zero_(named_tensors(self._copy), sums.labelled(structures, roles), gone)
        self._inputs, self._before = _fewer_pixels(self._copy, example_inputs)
        if why := nothing_to_compare(self._before):
            raise ValueError(why)

    @cached_property
    def _training(self) -> Remembered | None:
        return remember_training(self._copy, self._inputs)

    def hold(self, one: Tensor, other: Tensor) -> bool:
        """Whether two cuts of zeroed structures can be made, in the fewest passes that tell.

        Most models return in training mode what they return in evaluation mode, or draw random
        numbers: for them no pass of the uncut model in training mode is needed.
        """
        alike = replace(self._before, training=True, may_draw=True)
        found = self._attempt(one, [alike], tolerance_for(alike.values))
        # A model that draws has only been seen to run.
        left = [other] if found.compared else [one, other]
        return found.same and all(self._attempt(gone, [self._before]).same for gone in left)

    def reason(self, members: Sequence[int], gone: Tensor, training: bool = True) -> str | None:
        """Why some zeroed structures of these groups cannot be cut together, or None."""
        chosen = gone & torch.isin(self._structures.group_of, torch.tensor(members, device="cpu"))
        branches = {branch.structure for branch in self._structures.branches}
        whole = not branches.isdisjoint(chosen.nonzero().flatten().tolist())
        what = "residual branch" if whole else "channel"
        before = [self._before, *([self._training] if training and self._training else [])]
        found = self._attempt(chosen, before)
        where = " in training mode" if found.training else ""
        if found.crash:
            return f"{_FAILS}{where} once a {what} is removed ({found.crash})"
        if not found.same:
            return f"removing a zeroed {what} changes the model's output{where}"
        return None

    def _attempt(
        self, gone: Tensor, before: Sequence[Remembered], tolerance: float | None = None
    ) -> Comparison:
        return attempt(self._copy, self._structures, gone, self._inputs, before, tolerance)


@torch.no_grad()
def _zero_(tensors: Mapping[str, Tensor], slices: Sequence[sums.Labelled], gone: Tensor) -> None:
    """Zero structures of a twin, whose tensors get storage of their own.

    Of a tensor that keeps one stretch, that alone is copied, into zeros.
    """
    stretches: dict[str, dict[int, Stays]] = {}
    scattered = []
    for item, stays in zip(slices, stays_of(gone, [s.structure for s in slices]), strict=True):
        if stays.indices.numel() == item.structure.numel():
            continue
        own = stretches.setdefault(item.name, {})
        if stays.first is None or item.dim in own:
            scattered.append(item)
        else:
            own[item.dim] = stays
    for name, kept in stretches.items():
        source, zeros = tensors[name].data, torch.zeros_like(tensors[name].data)
        target = zeros
        for dim, stays in kept.items():
            source, target = (stays.of(tensor, dim, copy=False) for tensor in (source, target))
        target.copy_(source)
        tensors[name].data = zeros
    edits.zero_(edits.picked(scattered, gone, tensors), tensors)


def _drawn(structures: StructureMap) -> tuple[Tensor, Tensor]:
    """Two cuts that chance has drawn, bool, shape ``(S,)``.

    Uneven from group to group: equal numbers would keep widths equal that have to stay equal. About
    half of each group leaves, of a wide one three quarters, so that little is left to copy and run,
    and from one end of it: what is left of a weight is one stretch, which is many times faster to
    take. Of a narrow one too few would stay: a ReLU may silence them all.
    """
    generator = torch.Generator().manual_seed(0)

    def number(most: int) -> int:
        return int(torch.randint(most, (), generator=generator, device="cpu"))

    masks = torch.zeros(2, structures.num_structures, dtype=torch.bool, device="cpu")
    for group in structures.groups:
        most, at_front = group.size * (3 if group.size >= _WIDE else 2) // 4, number(2)
        for mask in masks if most else ():
            some = most - number(min(_UNEVEN, most))
            start = group.start if at_front else group.stop - some
            mask[start : start + some] = True
    return masks[0], masks[1]


def guilty(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    before: Remembered,
    tolerance: float | None,
) -> list[str]:
    """Groups whose cut alone already changes the outputs.

    Args:
        model: Left as it is; a twin of it is cut.
        structures: Its structures.
        gone: Which of them were to leave, bool, shape ``(S,)``; they are zero.
        example_inputs: What to run it on.
        before: What the uncut model returned.
        tolerance: Largest relative difference; None for what rounding explains.
    """
    copy, found = twin(model), []
    for group in structures.groups:
        some = torch.zeros_like(gone)
        some[group.start : group.stop] = gone[group.start : group.stop]
        if bool(some.any()):
            result = attempt(copy, structures, some, example_inputs, [before], tolerance)
            if not result.same:
                found.append(group.layer)
    return found


def attempt(
    copy: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    before: Sequence[Remembered],
    tolerance: float | None = None,
) -> Comparison:
    """Cut a twin, compare its outputs, put it back.

    Args:
        copy: The twin.
        structures: Its structures.
        gone: Which of them leave, bool, shape ``(S,)``; they are zero.
        example_inputs: What to run it on.
        before: What it returned before the cut, in one mode or in several.
        tolerance: Largest relative difference; None for what rounding explains.

    Returns:
        The first comparison that fails, or else the last.
    """
    undo = Undo()
    try:
        cut(undo, copy, structures, gone, on_trial=True)
        for one in before:
            found = compare(copy, example_inputs, one, tolerance)
            if not found.same:
                break
        return found
    finally:
        undo.run()


def _fewer_pixels(model: nn.Module, inputs: ExampleInputs) -> tuple[ExampleInputs, Remembered]:
    """Inputs for trial cuts and what the model returns on them.

    Every n-th pixel of an image is enough to see a width written down as a number, and many times
    faster, if the model takes it.
    """
    step = (
        min(inputs.shape[2:]) // _ENOUGH if isinstance(inputs, Tensor) and inputs.dim() == 4 else 0
    )
    if step > 1:
        fewer = inputs[..., ::step, ::step].contiguous()
        with suppress(Exception):  # a position embedding, a linear layer after a flatten ...
            found = remember(model, fewer)
            if found.finite and found.finite == sum(value.numel() for value in found.values):
                return fewer, found
    return inputs, remember(model, inputs)


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
