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
from decayprune.structures import sums
from decayprune.structures.example import ExampleInputs, outputs
from decayprune.structures.structure_map import StructureMap
from decayprune.structures.wrappers import check_unwrapped
from decayprune.surgery.compact import CompactionError, cut_copies
from decayprune.surgery.cut import Cut, difference, first_line, named_tensors, tolerance_for

Roots = Mapping[int, rehearsal.Root]


def cut(
    pruner: Any,
    structures: StructureMap,
    roots: Roots,
    gone: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
) -> tuple[rehearsal.Snapshot, Cut]:
    """Cut model and pruner; both results undo their part.

    Args:
        pruner: A Torch-Pruning pruner, through it the model.
        structures: What is in the model now.
        roots: Where the pruner takes hold of each group.
        gone: Which structures leave, bool, shape ``(S,)``.
        optimizers: Their state is cut along.
    """
    snapshot = rehearsal.Snapshot(pruner)
    try:
        rehearsal.remove(pruner, structures, roots, gone)
        snapshot.restore_tensors()
        return snapshot, Cut(pruner.model, structures, gone, optimizers, final=True)
    except BaseException:
        snapshot.restore()
        raise


def remove(
    pruner: Any,
    structures: StructureMap,
    roots: Roots,
    gone: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    example_inputs: ExampleInputs,
    tolerance: float | None,
    copies: Sequence[nn.Module] = (),
) -> tuple[float, float]:
    """Remove structures that are zero, and check that no output changed.

    Args:
        pruner: A Torch-Pruning pruner, through it the model.
        structures: What is in the model now.
        roots: Where the pruner takes hold of each group.
        gone: Which structures leave, bool, shape ``(S,)``.
        optimizers: Their state is cut along.
        example_inputs: What the outputs are compared on.
        tolerance: Largest error relative to the largest output; None for the dtype's default.
        copies: Copies of the model as it is now, zeroed and cut at the same structures.

    Returns:
        Largest change of an output: absolute, and relative to the largest.

    Raises:
        RuntimeError: A DistributedDataParallel still wraps the model.
        CompactionError: A structure is not zero, or the outputs changed; everything is as before.
    """
    check_unwrapped(pruner.model)
    _check_zero(pruner, structures, gone)
    before = outputs(pruner.model, example_inputs)
    snapshot, done = cut(pruner, structures, roots, gone, optimizers)
    try:
        problem = None
        error, relative = difference(before, outputs(pruner.model, example_inputs))
        if relative > (tolerance_for(before) if tolerance is None else tolerance):
            problem = f"outputs changed by {relative:.1e} (relative)"
    except Exception as raised:  # forward() of the cut model may fail in any way
        problem, error, relative = f"forward() fails: {first_line(raised)}", 0.0, 0.0
    if problem is not None:
        done.undo()
        snapshot.restore()
        raise CompactionError(
            f"Removing {int(gone.sum())} structures would change the model: {problem}. They were "
            "left in. Put the layers concerned into the pruner's ignored_layers, or pass a larger "
            "tolerance if the difference is acceptable."
        )
    try:
        cut_copies(copies, structures, gone, example_inputs, tolerance)
    except BaseException:
        done.undo()
        snapshot.restore()
        raise
    done.commit()
    return error, relative


def _check_zero(pruner: Any, structures: StructureMap, gone: Tensor) -> None:
    slices, tensors = sums.labelled(structures), named_tensors(pruner.model)
    alive = gone & (sums.sum_products(slices, gone.numel(), tensors).cpu() != 0)
    if bool(alive.any()):
        raise CompactionError(
            f"{int(alive.sum())} structures to remove are not zero. Weights were changed after "
            "they were pruned (a checkpoint loaded, an average copied in?); load the matching "
            "weights and host state together."
        )


def kept_indices(structures: StructureMap, gone: Tensor) -> dict[tuple[str, int], Tensor]:
    """What stays along each cut dimension, by (tensor name, dimension)."""
    stays = torch.cat([~gone, torch.ones(1, dtype=torch.bool)])
    return {
        (item.name, item.dim): stays[item.structure].nonzero().flatten()
        for item in structures.slices
        if not bool(stays[item.structure].all())
    }
