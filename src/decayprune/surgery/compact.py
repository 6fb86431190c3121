"""The knife: removes structures physically, in place, and proves that nothing else changed.

A cut keeps every ``nn.Parameter`` object and gives it smaller data, so optimizers, schedulers and
shared parameters stay bound; optimizer state of the parameter's shape is sliced along. The outputs
of the cut model are compared with those before; on a mismatch everything is put back.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from decayprune.cost import CostModel
from decayprune.structures import sums
from decayprune.structures.example import ExampleInputs, outputs
from decayprune.structures.structure_map import Role, StructureMap
from decayprune.structures.wrappers import check_unwrapped
from decayprune.surgery.copies import CopyCut, matching
from decayprune.surgery.cut import (
    Cut,
    difference,
    failure,
    first_line,
    named_tensors,
    tolerance_for,
)


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


def compact(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    *,
    example_inputs: ExampleInputs,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    copies: nn.Module | Sequence[nn.Module] = (),
    tolerance: float | None = None,
    roles: Collection[Role] = sums.WEIGHTS,
) -> CompactionReport:
    """Remove structures that are zero, in place, and check that no output changed.

    Args:
        model: Cut in place; its parameters keep their identity.
        structures: Its structures.
        gone: Which of them leave, bool, shape ``(S,)``; their slices must be exact zeros.
        example_inputs: What the outputs are compared on.
        optimizers: Their state is sliced along.
        copies: Copies of the model (moving averages) to zero and cut at the same structures.
        tolerance: Largest error relative to the largest output; by default 1e-4 in float32,
            1e-9 in float64, 2e-2 in half precision.
        roles: Slices that must be exact zeros; a method whose structures do not hold the
            consumers' columns leaves those out (the outputs are compared all the same).

    Raises:
        RuntimeError: A DistributedDataParallel still wraps the model.
        ValueError: A copy is none; nothing was cut.
        CompactionError: A structure is not zero, or outputs changed; model and copies are uncut.
    """
    gone = gone.cpu()
    others = matching(copies, model)
    check_unwrapped(model)
    _check_zero(model, structures, gone, roles)
    _check_state(model, structures, optimizers)
    before = outputs(model, example_inputs)
    cost = CostModel(structures, {n: p.shape for n, p in model.named_parameters()})
    cut = Cut(model, structures, gone, optimizers, final=True)
    try:
        after = outputs(model, example_inputs)
        error, relative = difference(before, after)
        limit = tolerance if tolerance is not None else tolerance_for(before)
        problem = None if relative <= limit else f"outputs changed by {relative:.1e} (relative)"
    except Exception as raised:  # forward() of the cut model may fail in any way
        problem, error, relative = f"forward() fails: {first_line(raised)}", 0.0, 0.0
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
    try:
        cut_copies(others, structures, gone, example_inputs, tolerance, roles)
    except BaseException:
        cut.undo()
        raise
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


def cut_copies(
    copies: Sequence[nn.Module],
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    tolerance: float | None,
    roles: Collection[Role] = sums.WEIGHTS,
) -> None:
    """Zero and cut copies at the same structures as their model: all of them or none.

    Args:
        copies: As :func:`~decayprune.surgery.copies.matching` returns them.
        structures: Of model and copies before the cut.
        gone: Which of them leave, bool, shape ``(S,)``.
        example_inputs: What the outputs of each copy are compared on.
        tolerance: Largest error relative to the largest output; None for the dtype's default.
        roles: Slices of them that are zeroed first.

    Raises:
        CompactionError: The outputs of a copy would change; every copy is as before.
    """
    cuts: list[CopyCut] = []
    try:
        for number, copy in enumerate(copies):
            cuts.append(CopyCut(copy, structures, gone, roles))
            problem = cuts[-1].cut(example_inputs, tolerance)
            if problem is not None:
                raise CompactionError(
                    f"Cutting copies[{number}] would change it: {problem}. The model and its "
                    "copies were left uncut. Compact without this copy, and make a new one of "
                    "the model after it."
                )
    except BaseException:
        for cut in cuts:
            cut.undo()
        raise


def _check_zero(
    model: nn.Module, structures: StructureMap, gone: Tensor, roles: Collection[Role]
) -> None:
    tensors = named_tensors(model)
    slices = sums.labelled(structures, roles)
    left = sums.sum_products(slices, structures.num_structures, tensors).cpu()
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


def _guilty(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    before: Sequence[Tensor],
    tolerance: float | None,
) -> list[str]:
    """Groups whose cut alone already changes the outputs."""
    limit = tolerance if tolerance is not None else tolerance_for(before)
    found = []
    for number, group in enumerate(structures.groups):
        some = gone & (structures.group_of == number)
        if bool(some.any()) and failure(model, structures, some, example_inputs, before, limit):
            found.append(group.layer)
    return found
