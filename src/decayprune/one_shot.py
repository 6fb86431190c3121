"""Pruning on data alone: what a person wants of a trained model that is not to be trained again.

The weights of what stays are fitted to some batches and nothing is learned, so neither labels nor a
loop are asked for. For more than a small cut, training it afterwards gives back most of the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from decayprune.cost import Budget
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.structures.example import ExampleInputs
from decayprune.surgery.compact import CompactionReport


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
    before = copy.deepcopy(model.state_dict())
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with torch.enable_grad():
            _thaw(model)
            return _cut(
                model, example_inputs, budget=budget, calibrate=calibrate, rectify=None, **options
            )
    except BaseException:
        model.load_state_dict(before)
        raise
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _thaw(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)


def _cut(model: nn.Module, example_inputs: ExampleInputs, **options: Any) -> CompactionReport:
    """One step of an optimizer that moves nothing is what a cut at once waits for."""
    still = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    pruner = DecayPruner(model, still, example_inputs, schedule=Schedule.at_once(), **options)
    still.step()
    pruner.step()
    return pruner.compact()
