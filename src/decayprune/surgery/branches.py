"""Which residual branches can leave, found on a trace and tried on a twin; what each is worth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from decayprune.compensation.calibration import on_device
from decayprune.structures.branches import with_branches
from decayprune.structures.example import ExampleInputs, outputs
from decayprune.structures.ranks import averaged
from decayprune.structures.structure_map import Refusal, StructureMap
from decayprune.structures.tracing.branches import residual_branches
from decayprune.structures.tracing.trace import ignored_names
from decayprune.structures.twin import twin
from decayprune.surgery.bypassing import bypass
from decayprune.surgery.trial import refuse_unremovable
from decayprune.surgery.undo import Undo

MOST_BATCHES = 4  # each costs a forward pass per branch


def offer_branches(
    model: nn.Module,
    structures: StructureMap,
    example_inputs: ExampleInputs,
    ignored_layers: Iterable[str | nn.Module] = (),
) -> StructureMap:
    """The map with every residual branch that can be removed.

    Each was zeroed and removed from a twin, in evaluation and in training mode; one for which that
    fails is refused with the reason.

    Args:
        model: Left as it is.
        structures: Without branches.
        example_inputs: What to run it on.
        ignored_layers: Names, globs or modules; a branch stays if one of them would leave.
    """
    found, refused = residual_branches(model, example_inputs)
    ignored = ignored_names(model, ignored_layers)
    free = [b for b in found if ignored.isdisjoint(item.module for item in b.bypassed)]
    refused += [Refusal(b.name, 0, "ignored") for b in found if b not in free]
    offered = with_branches(structures, free, dict(model.named_parameters()), refused)
    return refuse_unremovable(model, offered, example_inputs) if free else offered


def deepened(
    model: nn.Module,
    example_inputs: ExampleInputs,
    ignored_layers: Iterable[str | nn.Module],
    refine: Callable[[StructureMap], StructureMap],
    structures: StructureMap,
) -> StructureMap:
    """The structures that may be pruned at all, residual branches among them.

    Args:
        model: Left as it is.
        example_inputs: What to run it on.
        ignored_layers: Names, globs or modules; a branch stays if one of them would leave.
        refine: Leaves out of the structures of widths what is to stay.
        structures: Of widths.

    Raises:
        ValueError: There is no branch.
    """
    offered = offer_branches(model, refine(structures), example_inputs, ignored_layers)
    if not offered.branches:
        refused = offered.refusals[len(structures.refusals) :]
        reasons = "; ".join(f"`{r.layer}`: {r.reason}" for r in refused if not r.width)
        raise ValueError(
            "Budget(depth=...) is about residual branches, and none of this model can be removed. "
            + (f"What is left alone, and why: {reasons}. " if reasons else "None was found. ")
            + "Bound the MACs instead."
        )
    return offered


def branch_effects(
    model: nn.Module, structures: StructureMap, batches: Iterable[ExampleInputs]
) -> Tensor:
    """How much the model's outputs change without each residual branch.

    The sum of the squared differences, relative to that of the squared outputs, when the branch
    alone is removed; over several outputs the mean. In a data-parallel run every rank brings
    batches of its own, and all learn the same.

    Source: leaving parts out one at a time, as SLEB does with the blocks of language models (arXiv
    2402.09025), with the outputs instead of a perplexity.

    Args:
        model: Left as it is.
        structures: Its structures, branches among them.
        batches: Each as ``example_inputs`` are; at most 4 are read.

    Returns:
        Shape ``(B,)``, float64.
    """
    copy, device = twin(model), next(model.parameters()).device
    changed = torch.zeros(len(structures.branches), dtype=torch.float64, device="cpu")
    for batch in itertools.islice(batches, MOST_BATCHES):
        inputs = on_device(device, batch)
        whole = outputs(copy, inputs)
        for number, branch in enumerate(structures.branches):
            undo = Undo()
            try:
                bypass(undo, copy, branch.bypassed)
                changed[number] += _difference(outputs(copy, inputs), whole)
            finally:
                undo.run()
    return averaged(changed)


def _difference(found: list[Tensor], whole: list[Tensor]) -> float:
    parts = [
        (a.double() - b.double()).square().sum() / b.double().square().sum().clamp(min=1e-38)
        for a, b in zip(found, whole, strict=True)
    ]
    return float(sum(parts)) / max(len(parts), 1)
