"""The knife: removes structures physically, in place, and proves that nothing else changed.

A cut keeps every ``nn.Parameter`` object and gives it smaller data, so optimizers, schedulers and
shared parameters stay bound; optimizer state of the parameter's shape is sliced along. The outputs
of the cut model are compared with those before; on a mismatch everything is put back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.cost import CostModel
from decayprune.structures import ops
from decayprune.structures.forward import ExampleInputs, outputs
from decayprune.structures.structure_map import StructureMap

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative; half precisions below
_HALF_TOLERANCE = 2e-2


class CompactionError(RuntimeError):
    """Removing structures would have changed the model's outputs; the model was left uncut."""


@dataclass(frozen=True)
class CompactionReport:
    """What a compaction removed.

    Attributes:
        macs_before: Multiply-accumulates of one example before the cut.
        macs_after: The same after it.
        params_before: Parameters before the cut.
        params_after: Parameters after it.
        removed: Structures removed.
        max_abs_error: Largest difference of an output on the example inputs.
        max_rel_error: The same, relative to the largest output.
        widths: (layer, width before, width after) of every prunable group.
        kept: Indices kept along each cut dimension, by (tensor name, dimension).
    """

    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    removed: int
    max_abs_error: float
    max_rel_error: float
    widths: tuple[tuple[str, int, int], ...] = ()
    kept: Mapping[tuple[str, int], Tensor] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """A short table."""
        rows = (
            ("MACs", self.macs_before, self.macs_after),
            ("parameters", self.params_before, self.params_after),
        )
        lines = [f"{'':12}{'before':>16}{'after':>16}{'remains':>10}"]
        lines += [f"{n:12}{a:>16,}{b:>16,}{b / max(a, 1):>10.1%}" for n, a, b in rows]
        lines.append(
            f"{self.removed:,} structures removed; outputs changed by at most "
            f"{self.max_abs_error:.1e} ({self.max_rel_error:.1e} of the largest)."
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """The figures as a JSON object (without the kept indices)."""
        figures = {k: v for k, v in asdict(self).items() if k not in ("kept", "widths")}
        figures["widths"] = [
            {"layer": layer, "before": before, "after": after}
            for layer, before, after in self.widths
        ]
        return json.dumps(figures)


# ---------------------------------------------------------------- cutting and putting back


class Cut:
    """One physical cut of a model that can be undone until it is forgotten.

    Args:
        model: Cut in place.
        structures: Its structures.
        gone: Which of them leave, bool, shape ``(S,)``.
        optimizers: Their state of cut parameters is sliced along.
    """

    def __init__(
        self,
        model: nn.Module,
        structures: StructureMap,
        gone: Tensor,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        self._undo: list[Callable[[], None]] = []
        self._cut: list[Tensor] = []
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
            for name, cuts in kept_of.items():
                self._cut_tensor(tensors[name], cuts, optimizers)
            modules = dict(model.named_modules())
            for module, attribute, labels, divisor in structures.attributes:
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
                result = result.index_select(dim, index.to(result.device))
            last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
            if last and not value.is_contiguous():
                result = result.contiguous(memory_format=torch.channels_last)
            return result

        def put_back() -> None:
            tensor.grad = None
            tensor.data = old
            tensor.grad = grad

        self._undo.append(put_back)
        self._cut.append(tensor)
        tensor.grad = None
        tensor.data = smaller(old)
        tensor.grad = None if grad is None else smaller(grad)
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
        """Make the cut final: autograd forgets the old shapes."""
        for tensor in self._cut:
            if not isinstance(tensor, nn.Parameter):
                continue
            fresh, grad = nn.Parameter(tensor.data, tensor.requires_grad), tensor.grad
            try:
                # A graph that is still alive (the last loss, usually) keeps the parameter's
                # gradient accumulator, and with it the old shape, alive. Swapping gives the same
                # Python object a new one.
                torch.utils.swap_tensors(tensor, fresh)
            except RuntimeError:  # something else refers to the parameter; its data is cut anyway
                continue
            tensor.grad = grad
        self._undo.clear()

    def undo(self) -> None:
        """Put everything back as it was."""
        while self._undo:
            self._undo.pop()()


def _setter(state: dict[Any, Any], key: Any, value: Any) -> Callable[[], None]:
    def put_back() -> None:
        state[key] = value

    return put_back


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their qualified names."""
    tensors: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    tensors.update(model.named_parameters(remove_duplicate=False))
    return tensors


# ---------------------------------------------------------------- the whole compaction


def compact(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    *,
    example_inputs: ExampleInputs,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    tolerance: float | None = None,
) -> CompactionReport:
    """Remove structures that are zero, in place, and check that no output changed.

    Args:
        model: Cut in place; its parameters keep their identity.
        structures: Its structures.
        gone: Which of them leave, bool, shape ``(S,)``; their slices must be exact zeros.
        example_inputs: What the outputs are compared on.
        optimizers: Their state is sliced along.
        tolerance: Largest error relative to the largest output; by default 1e-4 in float32,
            1e-9 in float64, 2e-2 in half precision.

    Raises:
        CompactionError: A structure is not zero, or the outputs changed; the model is uncut.
    """
    gone = gone.cpu()
    _check_zero(model, structures, gone)
    _check_state(model, structures, optimizers)
    before = outputs(model, example_inputs)
    cost = CostModel(structures, {n: p.shape for n, p in model.named_parameters()})
    cut = Cut(model, structures, gone, optimizers)
    try:
        after = outputs(model, example_inputs)
        error, relative = difference(before, after)
        limit = tolerance if tolerance is not None else _tolerance(before)
        problem = None if relative <= limit else f"outputs changed by {relative:.1e} (relative)"
    except Exception as raised:  # forward() of the cut model may fail in any way
        problem, error, relative = f"forward() fails: {_first_line(raised)}", 0.0, 0.0
    except BaseException:
        cut.undo()
        raise
    if problem is not None:
        cut.undo()
        guilty = _guilty(model, structures, gone, example_inputs, before, tolerance)
        raise CompactionError(
            f"Removing {int(gone.sum())} structures would change the model: {problem}. The model "
            f"was left uncut. Groups that fail alone: {', '.join(guilty) or 'none'}. Put them into "
            "ignored_layers, or pass a larger tolerance if the difference is acceptable."
        )
    cut.commit()
    kept_counts = cost.keep_counts(gone)
    return CompactionReport(
        macs_before=cost.macs(cost.sizes),
        macs_after=cost.macs(kept_counts),
        params_before=cost.params(cost.sizes),
        params_after=cost.params(kept_counts),
        removed=int(gone.sum()),
        max_abs_error=error,
        max_rel_error=relative,
        widths=tuple(
            (group.layer, group.size * group.width, int(kept) * group.width)
            for group, kept in zip(structures.groups, kept_counts, strict=True)
        ),
        kept=cut.kept,
    )


def _check_zero(model: nn.Module, structures: StructureMap, gone: Tensor) -> None:
    tensors = named_tensors(model)
    slices = ops.labelled(structures)
    left = ops.sum_products(slices, structures.num_structures, tensors).cpu()
    alive = (gone & (left != 0)).nonzero().flatten()
    if alive.numel():
        first = int(alive[0])
        raise CompactionError(
            f"{alive.numel()} structures to remove are not zero (the first: channel "
            f"{int(structures.index[first])} of {structures.layer_of(first)}). Weights were "
            "changed after they were pruned (a checkpoint loaded, an average copied in?). The "
            "model was left uncut; load the matching weights and pruner state together."
        )


def _check_state(
    model: nn.Module, structures: StructureMap, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    tensors = named_tensors(model)
    for name in dict.fromkeys(item.name for item in structures.slices):
        tensor = tensors[name]
        for optimizer in optimizers:
            for key, value in optimizer.state.get(tensor, {}).items():
                if not isinstance(value, Tensor) or value.numel() <= 1:
                    continue
                if value.shape != tensor.shape:
                    raise CompactionError(
                        f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} "
                        f"for {name} of shape {tuple(tensor.shape)}; only state of the "
                        "parameter's own shape can be cut along. Call pruner.compact() with an "
                        "optimizer such as SGD, Adam or AdamW, and make a new one after the cut."
                    )


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and the same relative to the largest value.

    Raises:
        ValueError: The shapes differ.
    """
    error, relative = 0.0, 0.0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"an output changed its shape from {tuple(a.shape)} to {tuple(b.shape)}")
        if not a.numel():
            continue
        distance = float((a.double() - b.double()).abs().nan_to_num(nan=float("inf")).max())
        largest = float(a.double().abs().max())
        error = max(error, distance)
        relative = max(relative, distance / largest if largest else distance)
    return error, relative


def _tolerance(values: Sequence[Tensor]) -> float:
    return max((_TOLERANCE.get(v.dtype, _HALF_TOLERANCE) for v in values), default=_HALF_TOLERANCE)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def _guilty(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    before: Sequence[Tensor],
    tolerance: float | None,
) -> list[str]:
    """Groups whose cut alone already changes the outputs."""
    limit = tolerance if tolerance is not None else _tolerance(before)
    found = []
    for number, group in enumerate(structures.groups):
        some = gone & (structures.group_of == number)
        if bool(some.any()) and _failure(model, structures, some, example_inputs, before, limit):
            found.append(group.layer)
    return found


# ---------------------------------------------------------------- trial cuts


def _failure(
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
        return f"forward() fails once a channel is removed ({_first_line(raised)})"
    finally:
        cut.undo()
    return None if relative <= limit else "removing a zeroed channel changes the model's output"


def refuse_uncuttable(
    model: nn.Module, structures: StructureMap, example_inputs: ExampleInputs
) -> StructureMap:
    """The map without the groups that cannot be cut: each is tried, one structure at a time.

    A forward() may compute with a width that it hard-codes, which no trace can see. One structure
    of every group is zeroed, the outputs noted, and the structure cut out; a group for which this
    fails is refused with the reason. The model is put back exactly.

    Args:
        model: Put back bit for bit.
        structures: Its structures.
        example_inputs: What to run it on.
    """
    large = [group for group in structures.groups if group.size > 1]
    trial = torch.zeros(structures.num_structures, dtype=torch.bool)
    trial[[group.start for group in large]] = True
    if not large:
        return structures
    tensors = named_tensors(model)
    names = dict.fromkeys(item.name for item in structures.slices if item.role != "buffer")
    ranks = {name: tensors[name].dim() for name in names}
    device = next(iter(tensors.values())).device
    locator = ops.Locator(ops.labelled(structures), structures.num_structures, ranks, device)
    pick = locator.pick(trial.nonzero().flatten().to(device))
    with torch.no_grad():
        saved = {name: tensors[name].detach().clone() for name in dict.fromkeys(pick.names)}
        try:
            ops.zero_(pick, tensors)
            before = outputs(model, example_inputs)
            limit = _tolerance(before)
            failed = _search(model, structures, trial, example_inputs, before, limit)
        finally:
            for name, value in saved.items():
                tensors[name].copy_(value)
    return structures.without(dict(failed)) if failed else structures


def _search(
    model: nn.Module,
    structures: StructureMap,
    trial: Tensor,
    example_inputs: ExampleInputs,
    before: Sequence[Tensor],
    limit: float,
) -> list[tuple[int, str]]:
    """(group, reason) of those that fail, by halving: cheap where nothing or little fails."""
    reason = _failure(model, structures, trial, example_inputs, before, limit)
    if reason is None:
        return []
    members = trial.nonzero().flatten()
    groups = structures.group_of[members]
    if members.numel() == 1:
        return [(int(groups[0]), reason)]
    failed = []
    for half in members.tensor_split(2):
        mask = torch.zeros_like(trial)
        mask[half] = True
        failed += _search(model, structures, mask, example_inputs, before, limit)
    # Each half works and both together do not: nobody is to blame alone, so all are refused.
    return failed or [(int(group), reason) for group in groups]
