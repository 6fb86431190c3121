"""Removing a chunk: Torch-Pruning cuts widths and its graph, our knife cuts the tensors.

Torch-Pruning replaces the parameters that it cuts and leaves the optimizer with the old ones. Here
its new parameters are thrown away again: the old objects keep their identity and get smaller data,
optimizer state along with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.hosts.depgraph import rehearsal
from decayprune.structures.example import ExampleInputs
from decayprune.structures.structure_map import StructureMap
from decayprune.surgery.compare import Comparison
from decayprune.surgery.cut import cut
from decayprune.surgery.undo import Undo
from decayprune.surgery.verified import cut_verified

Roots = Mapping[int, rehearsal.Root]


def remove(
    undo: Undo,
    pruner: Any,
    structures: StructureMap,
    roots: Roots,
    gone: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    example_inputs: ExampleInputs,
    tolerance: float | None,
    copies: Sequence[nn.Module] = (),
) -> Comparison:
    """Remove structures that are zero, and check that no output changed.

    Args:
        undo: Gets the way back, for the model and the pruner.
        pruner: A Torch-Pruning pruner, through it the model.
        structures: What is in the model now.
        roots: Where the pruner takes hold of each group.
        gone: Which structures leave, bool, shape ``(S,)``.
        optimizers: Their state is cut along.
        example_inputs: What the outputs are compared on.
        tolerance: Largest error relative to the largest output; None for the dtype's default.
        copies: Copies of the model as it is now, zeroed and cut at the same structures.

    Raises:
        RuntimeError: A DistributedDataParallel still wraps the model.
        CompactionError: A structure is not zero, or the outputs changed.
    """
    return cut_verified(
        undo,
        pruner.model,
        structures,
        gone,
        example_inputs=example_inputs,
        optimizers=optimizers,
        copies=copies,
        tolerance=tolerance,
        along=lambda undo: _cut_graph(undo, pruner, structures, roots, gone),
    )


def repeat(
    undo: Undo,
    pruner: Any,
    structures: StructureMap,
    roots: Roots,
    gone: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Cut what a saved run had cut, before its weights are loaded: there is nothing to compare.

    Args:
        undo: Gets the way back, for the model and the pruner.
        pruner: A Torch-Pruning pruner, through it the model.
        structures: What is in the model now.
        roots: Where the pruner took hold of each group.
        gone: Which structures leave, bool, shape ``(S,)``.
        optimizers: Their state is cut along.
    """
    _cut_graph(undo, pruner, structures, roots, gone)
    cut(undo, pruner.model, structures, gone, optimizers)


def _cut_graph(
    undo: Undo, pruner: Any, structures: StructureMap, roots: Roots, gone: Tensor
) -> None:
    """Let the pruner cut widths and graph, and take the tensors that it made away again."""
    snapshot = rehearsal.Snapshot(pruner)
    undo.note(snapshot.restore)
    rehearsal.remove(pruner, structures, roots, gone)
    snapshot.restore_tensors()
