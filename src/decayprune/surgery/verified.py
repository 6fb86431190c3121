"""The verified cut: structures leave, and the outputs prove that nothing else did.

Every removal goes this way. First is asked whether it can be done (zeros, optimizer state, no
wrapper), then the model is cut and its outputs are compared with those before, then its copies
likewise. Its owner holds the :class:`~decayprune.surgery.undo.Undo` and runs it on any exception:
he has more to put back than the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from decayprune.structures import sums
from decayprune.structures.example import ExampleInputs
from decayprune.structures.structure_map import Role, StructureMap
from decayprune.structures.twin import named_tensors
from decayprune.structures.wrappers import check_unwrapped
from decayprune.surgery.compare import (
    Comparison,
    Remembered,
    compare,
    nothing_to_compare,
    proves_little,
    remember,
)
from decayprune.surgery.copies import zero_
from decayprune.surgery.cut import cut
from decayprune.surgery.trial import guilty, problem_of
from decayprune.surgery.undo import Undo

logger = logging.getLogger("decayprune")


class CompactionError(RuntimeError):
    """Removing structures would have changed the model's outputs; the model was left uncut."""


def cut_verified(
    undo: Undo,
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    *,
    example_inputs: ExampleInputs,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    copies: Sequence[nn.Module] = (),
    tolerance: float | None = None,
    roles: Collection[Role] = sums.WEIGHTS,
    along: Callable[[Undo], None] | None = None,
) -> Comparison:
    """Remove structures that are zero, in place, and check that no output changed.

    Args:
        undo: Gets the way back. Run it on any exception that passes, then everything is as before.
        model: Cut in place; its parameters keep their identity.
        structures: Its structures.
        gone: Which of them leave, bool, shape ``(S,)``.
        example_inputs: What the outputs are compared on.
        optimizers: Their state is sliced along.
        copies: As :func:`~decayprune.surgery.copies.matching` returns them, zeroed and cut at the
            same structures, each compared with itself.
        tolerance: Largest error relative to the largest output; None for the dtype's default.
        roles: Slices that must be exact zeros (and are zeroed in copies).
        along: Cuts what somebody else keeps about the model, before the tensors are cut.

    Returns:
        How far the outputs differ.

    Raises:
        RuntimeError: A DistributedDataParallel still wraps the model.
        CompactionError: A structure is not zero, optimizer state cannot be cut along, or outputs
            changed.
    """
    check_unwrapped(model)
    _check_zero(model, structures, gone, roles)
    check_state(model, structures, optimizers)
    before = _remembered(model, example_inputs)
    if why := proves_little(before):
        logger.warning(why)
    if along is not None:
        along(undo)
    cut(undo, model, structures, gone, optimizers)
    found = compare(model, example_inputs, before, tolerance)
    if not found.same:
        undo.run()  # now: whoever is to blame is looked for in the uncut model
        alone = guilty(model, structures, gone, example_inputs, before, tolerance)
        raise CompactionError(
            f"Removing {int(gone.sum())} structures would change the model: {found}. The model "
            f"was left uncut. Groups that fail alone: {', '.join(alone) or 'none'}. Put them into "
            "ignored_layers, or pass a larger tolerance if the difference is acceptable."
        )
    for number, copy in enumerate(copies):
        zero_(undo, copy, structures, gone, roles)
        remembered = _remembered(copy, example_inputs)
        cut(undo, copy, structures, gone)
        result = compare(copy, example_inputs, remembered, tolerance)
        if not result.same:
            raise CompactionError(
                f"Cutting copies[{number}] would change it: {result}. The model and its copies "
                "were left uncut. Compact without this copy, and make a new one of the model "
                "after it."
            )
    return found


def _remembered(model: nn.Module, example_inputs: ExampleInputs) -> Remembered:
    before = remember(model, example_inputs)
    if why := nothing_to_compare(before):
        raise CompactionError(f"{why} The model was left uncut.")
    return before


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


def check_state(
    model: nn.Module, structures: StructureMap, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Raise if an optimizer keeps state that cannot be cut along.

    Args:
        model: The model.
        structures: Its structures.
        optimizers: After their first step, before which they have no state.

    Raises:
        CompactionError: One does.
    """
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


def try_chosen(
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    example_inputs: ExampleInputs,
    roles: Collection[Role],
    step: int,
) -> None:
    """Try the very cut that was chosen, before its decay has cost anything.

    Args:
        model: As for :func:`~decayprune.surgery.trial.problem_of`, like all but the last.
        structures: Its structures.
        gone: Which of them are to leave.
        example_inputs: What to run it on.
        roles: Slices that are zero once a structure is pruned.
        step: When it was chosen.

    Raises:
        CompactionError: It cannot be made.
    """
    if problem := problem_of(model, structures, gone, example_inputs, roles):
        raise CompactionError(
            f"The cut that was chosen at step {step} cannot be made: {problem}. Put them into "
            "ignored_layers, and start again from the weights that you began with."
        )
