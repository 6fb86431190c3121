"""Pruning on data alone: what a person wants of a trained model that is not to be trained again.

The weights of what stays are fitted to some batches and nothing is learned, so neither labels nor a
loop are asked for. For more than a small cut, training it afterwards gives back most of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from decayprune.cost import Budget
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.structures.example import ExampleInputs
from decayprune.surgery.compact import CompactionReport
from decayprune.surgery.undo import Undo


def prune_one_shot(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    budget: Budget,
    calibrate: Iterable[Any],
    **options: Any,
) -> CompactionReport:
    """Cut a trained model in place, without training it.

    Structures are ranked by how much the outputs change without them, and what stays takes over
    what leaves by ridge regression, both on the batches (docs/trained.md, "Without training").
    Frozen parameters are pruned like others, and frozen again. Ours; the sources are those of
    :mod:`decayprune.compensation`.

    Args:
        model: Bare and trained; on any error its weights are as they were.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        budget: Upper bounds on what remains.
        calibrate: A loader, of which 16 batches are read, or batches like ``example_inputs``, at
            most 64; labels are left out.
        options: What :class:`DecayPruner` takes to say what may leave: ``ignored_layers``,
            ``importance``, ``round_to``, ``target``, ``scope``, ``floor``, ``residual_width``.

    Returns:
        What was removed, and how little the cut changed the outputs.

    Raises:
        TypeError: ``calibrate`` holds no data.
        ValueError: As of :class:`DecayPruner`.
        CompactionError: The outputs would change; nothing was cut.
    """
    if isinstance(calibrate, int):
        raise TypeError(
            "calibrate is data here, your loader or a list of batches, for nothing is trained of "
            f"which batches could be kept; found {calibrate!r}."
        )
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    undo = Undo()
    for tensor in (*model.parameters(), *model.buffers()):
        undo.keep_values(tensor)
    try:
        with torch.enable_grad():
            _thaw(model)
            return _cut(
                model, example_inputs, budget=budget, calibrate=calibrate, rectify=None, **options
            )
    except BaseException:
        undo.run()
        raise
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def stand_still(optimizer: torch.optim.Optimizer, then: Callable[[], object]) -> None:
    """Take a step that moves nothing, which is all that a cut at once waits for.

    Args:
        optimizer: Its rates are 0 afterwards.
        then: ``step`` of the pruner.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    then()


def _thaw(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)


def _cut(model: nn.Module, example_inputs: ExampleInputs, **options: Any) -> CompactionReport:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    pruner = DecayPruner(model, optimizer, example_inputs, schedule=Schedule.at_once(), **options)
    try:
        stand_still(optimizer, pruner.step)
        return pruner.compact()
    finally:
        pruner.close()  # else what is raised would hold the model for it
