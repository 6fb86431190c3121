"""Compaction: what is pruned leaves the model for good, and a report says what that was."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from decayprune import notebook
from decayprune.cost import CostModel
from decayprune.structures import sums
from decayprune.structures.example import ExampleInputs
from decayprune.structures.structure_map import Role, StructureMap
from decayprune.surgery.compare import Comparison
from decayprune.surgery.copies import matching
from decayprune.surgery.cut import kept_indices
from decayprune.surgery.undo import Undo
from decayprune.surgery.verified import cut_verified


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
        compared: Share of the output's numbers that could be compared, being finite.
        ordered: Sorts, top-k selections and suppressions whose order was kept for the comparison.
        doubtful: Integer attributes (``"block.dim"``) that equalled a width which was cut and were
            left as they are, because nothing tells whether they count it.
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
    compared: float = 1.0
    ordered: int = 0
    doubtful: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A short table."""
        lines = [f"{'':12}{'before':>16}{'after':>16}{'remains':>10}"]
        lines += [f"{n:12}{a:>16,}{b:>16,}{share:>10}" for n, a, b, share in self._rows()]
        return "\n".join([*lines, *self._notes()])

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return notebook.table(
            ("", "before", "after", "remains"),
            self._rows(),
            title="Compacted",
            below=" ".join(self._notes()),
        )

    def _rows(self) -> list[tuple[str, int, int, str]]:
        pairs = (
            ("MACs", self.macs_before, self.macs_after),
            ("parameters", self.params_before, self.params_after),
        )
        return [(name, a, b, f"{b / max(a, 1):.1%}") for name, a, b in pairs]

    def _notes(self) -> list[str]:
        lines = [
            f"{self.removed:,} structures removed; outputs changed by at most "
            f"{self.max_abs_error:.1e} ({self.max_rel_error:.1e} of the largest)."
        ]
        if self.compared < 1:
            lines.append(f"{self.compared:.1%} of the outputs were finite, and compared.")
        if self.ordered:
            lines.append(
                f"{self.ordered} choices of order (sorting, top-k, suppression) were kept as "
                "before, so that only values were compared."
            )
        if self.doubtful:
            lines.append(
                "Integers that equalled a width and may count it, left as they are: "
                f"{', '.join(self.doubtful)}."
            )
        return lines

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
    cost = CostModel(structures, {n: p.shape for n, p in model.named_parameters()})
    undo = Undo()
    try:
        found = cut_verified(
            undo,
            model,
            structures,
            gone,
            example_inputs=example_inputs,
            optimizers=optimizers,
            copies=others,
            tolerance=tolerance,
            roles=roles,
        )
        return compaction_report(structures, cost, gone, found)
    except BaseException:
        undo.run()
        raise


def compaction_report(
    structures: StructureMap, cost: CostModel, gone: Tensor, found: Comparison
) -> CompactionReport:
    """The report on a removal.

    Args:
        structures: Of the model before it.
        cost: What the model costs.
        gone: Which structures left, bool, shape ``(S,)``.
        found: How the outputs compare.
    """
    kept = cost.keep_counts(gone)
    return CompactionReport(
        macs_before=cost.macs(cost.sizes),
        macs_after=cost.macs(kept),
        params_before=cost.params(cost.sizes),
        params_after=cost.params(kept),
        removed=int(gone.sum()),
        max_abs_error=found.error,
        max_rel_error=found.relative,
        widths=tuple(
            (group.layer, group.size * group.width, int(left) * group.width)
            for group, left in zip(structures.groups, kept, strict=True)
        ),
        kept=kept_indices(structures, gone),
        compared=found.compared / max(found.numbers, 1),
        ordered=found.ordered,
        doubtful=tuple(
            f"{module}.{name}".lstrip(".")
            for module, name, may in structures.doubtful
            if bool(gone.cpu()[may[may >= 0]].any())
        ),
    )
