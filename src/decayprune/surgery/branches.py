"""Which residual branches can leave: found on a trace, tried on a twin."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from decayprune.structures.branches import with_branches
from decayprune.structures.example import ExampleInputs
from decayprune.structures.structure_map import Refusal, StructureMap
from decayprune.structures.tracing.branches import residual_branches
from decayprune.structures.tracing.trace import ignored_names
from decayprune.surgery.trial import refuse_unremovable


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
