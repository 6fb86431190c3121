"""Cutting structures out of a model, putting them back, and telling whether it made a difference.

A :class:`Cut` gives every tensor smaller data and can be undone; :func:`refuse_uncuttable` tries
a few structures of every group before any training begins, because no trace can see a width that a
``forward()`` has written into it as a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.structures import edits, sums
from decayprune.structures.exact.swap import become_all
from decayprune.structures.example import ExampleInputs, outputs
from decayprune.structures.structure_map import Role, StructureMap

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative; half precisions below
_HALF_TOLERANCE = 2e-2
_FEW = 16  # structures of a group cut on trial; odd widths would be slower to run
_ENOUGH = 48  # pixels along the shorter side of an image that trial cuts are made on
_FAILS = "forward() fails once a channel is removed"


class Cut:
    """One physical cut of a model that can be undone until it is forgotten.

    Args:
        model: Cut in place.
        structures: Its structures.
        gone: Which of them leave, bool, shape ``(S,)``.
        optimizers: Their state of cut parameters is sliced along.
        final: Make tensors of their own, and slice gradients along. A trial looks into the old
            ones and drops gradients until it is undone.
    """

    def __init__(
        self,
        model: nn.Module,
        structures: StructureMap,
        gone: Tensor,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        *,
        final: bool = False,
    ) -> None:
        self._undo: list[Callable[[], None]] = []
        self._final = final
        self.kept: dict[tuple[str, int], Tensor] = {}
        stays = torch.cat([~gone.cpu(), torch.ones(1, dtype=torch.bool)])  # label -1: stays
        tensors = named_tensors(model)
        kept_of: dict[str, list[tuple[int, Tensor]]] = {}
        for item in structures.slices:
            keep = stays[item.structure]
            if not bool(keep.all()):
                index = keep.nonzero().flatten()
                kept_of.setdefault(item.name, []).append((item.dim, index))
                self.kept[item.name, item.dim] = index
        try:
            modules = dict(model.named_modules())
            loses = {m for m, _, labels, _ in structures.attributes if not stays[labels].all()}
            self._undo.append(become_all(model, [modules[module] for module in loses]))
            for name, cuts in kept_of.items():
                self._cut_tensor(tensors[name], cuts, optimizers)
            for module, attribute, labels, divisor in structures.attributes:
                if module in loses:
                    self._set(modules[module], attribute, int(stays[labels].sum()) // divisor)
        except BaseException:
            self.undo()
            raise

    def _cut_tensor(
        self,
        tensor: Tensor,
        cuts: Sequence[tuple[int, Tensor]],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        old, grad, shape = tensor.data, tensor.grad, tensor.shape

        def smaller(value: Tensor) -> Tensor:
            result = value.detach()
            for dim, index in cuts:
                result = _select(result, dim, index.to(result.device), copy=self._final)
            last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
            if last and not value.is_contiguous():
                result = result.contiguous(memory_format=torch.channels_last)
            return result

        def put_back() -> None:
            tensor.grad = None
            _give(tensor, old)
            tensor.grad = grad

        self._undo.append(put_back)
        tensor.grad = None
        _give(tensor, smaller(old))
        if grad is not None and self._final:
            tensor.grad = smaller(grad)
        for optimizer in optimizers:
            state = optimizer.state.get(tensor, {})
            for key, value in list(state.items()):
                if isinstance(value, Tensor) and value.shape == shape and value.dim():
                    self._undo.append(_setter(state, key, value))
                    state[key] = smaller(value)

    def _set(self, module: nn.Module, attribute: str, value: int) -> None:
        old = getattr(module, attribute)
        if isinstance(old, tuple):  # LayerNorm.normalized_shape
            new: Any = (*old[:-1], value)
        else:
            new = value
        if new != old:
            self._undo.append(lambda: setattr(module, attribute, old))
            setattr(module, attribute, new)

    def commit(self) -> None:
        """Make the cut final."""
        self._undo.clear()

    def undo(self) -> None:
        """Put everything back as it was."""
        while self._undo:
            self._undo.pop()()


def _select(value: Tensor, dim: int, index: Tensor, *, copy: bool) -> Tensor:
    first, count = int(index[0]), index.numel()
    if int(index[-1]) - first + 1 == count:  # a stretch: many times faster
        part = value.narrow(dim, first, count)
        return part.clone(memory_format=torch.contiguous_format) if copy else part
    return value.index_select(dim, index)


def _give(tensor: Tensor, data: Tensor) -> None:
    """Give a tensor data of another shape, which autograd then knows, too."""
    # A graph that is still alive (the last loss, usually) keeps the parameter's gradient
    # accumulator, and with it the old shape, alive. Torch drops it where the dtype changes.
    other = torch.float32 if data.dtype == torch.float16 else torch.float16
    tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data


def _setter(state: dict[Any, Any], key: Any, value: Any) -> Callable[[], None]:
    def put_back() -> None:
        state[key] = value

    return put_back


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their qualified names."""
    tensors: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    tensors.update(model.named_parameters(remove_duplicate=False))
    return tensors


# ---------------------------------------------------------------- the same outputs?


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and the same relative to the largest value.

    Raises:
        ValueError: The shapes differ.
    """
    error, relative = 0.0, 0.0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            raise ValueError(
                f"an output changed its shape from {tuple(a.shape)} to {tuple(b.shape)}"
            )
        if not a.numel():
            continue
        distance = float((a.double() - b.double()).abs().nan_to_num(nan=float("inf")).max())
        largest = float(a.double().abs().max())
        error = max(error, distance)
        relative = max(relative, distance / largest if largest else distance)
    return error, relative


def tolerance_for(values: Sequence[Tensor]) -> float:
    """Largest relative difference that rounding alone explains in these dtypes."""
    return max((_TOLERANCE.get(v.dtype, _HALF_TOLERANCE) for v in values), default=_HALF_TOLERANCE)


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


# ---------------------------------------------------------------- trial cuts


def failure(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    before: Sequence[Tensor],
    limit: float,
) -> str | None:
    """Cut, compare, put back; why it failed, or None."""
    cut = Cut(model, structures, gone)
    try:
        relative = difference(before, outputs(model, example_inputs))[1]
    except Exception as raised:  # any error of a cut forward() is a reason to refuse the cut
        return f"{_FAILS} ({first_line(raised)})"
    finally:
        cut.undo()
    return None if relative <= limit else "removing a zeroed channel changes the model's output"


def refuse_uncuttable(
    model: nn.Module,
    structures: StructureMap,
    example_inputs: ExampleInputs,
    roles: Collection[Role] = sums.WEIGHTS,
) -> StructureMap:
    """The map without the groups that cannot be cut: a few structures of each are tried.

    A forward() may compute with a width that it hard-codes, which no trace can see. A few
    structures of every group are zeroed, the outputs noted, and the structures cut out; a group
    for which this fails is refused with the reason. The model is put back exactly.

    Args:
        model: Put back bit for bit.
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

    tensors = named_tensors(model)
    names = dict.fromkeys(item.name for item in structures.slices if item.role != "buffer")
    ranks = {name: tensors[name].dim() for name in names}
    device = next(iter(tensors.values())).device
    locator = edits.Locator(
        sums.labelled(structures, roles), structures.num_structures, ranks, device
    )
    pick = locator.pick(some(members).nonzero().flatten().to(device))
    with torch.no_grad():
        saved = edits.gather(pick, tensors)
        try:
            edits.zero_(pick, tensors)
            example_inputs, before = _trial(model, example_inputs)
            limit = tolerance_for(before)

            def try_(members: list[int]) -> str | None:
                return failure(model, structures, some(members), example_inputs, before, limit)

            failed = _search(structures, sorted(members, key=lambda m: _kind(structures, m)), try_)
        finally:
            edits.scatter_(pick, tensors, saved)
    return structures.without(dict(failed)) if failed else structures


def _trial(model: nn.Module, inputs: ExampleInputs) -> tuple[ExampleInputs, list[Tensor]]:
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
