"""A residual branch leaves a model: its modules are bypassed, and their parameters are gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from decayprune.structures.exact.bypass import fused, put_bypass
from decayprune.structures.structure_map import Bypassed
from decayprune.surgery.undo import Undo


def bypass(
    undo: Undo,
    model: nn.Module,
    modules: Iterable[Bypassed],
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Put a bypass in the place of each module.

    Args:
        undo: Gets the way back, each step of it before its change.
        model: Changed in place.
        modules: Which modules, and what is left of each.
        optimizers: They forget the parameters that no module holds any more.
    """
    before = dict(model.named_parameters())
    undo.keep(*fused(model))
    for item in modules:
        home, _, leaf = item.module.rpartition(".")
        undo.keep_item(model.get_submodule(home)._modules, leaf)
        put_bypass(model, item.module, zero=item.zero, items=item.items)
    left = {id(parameter) for parameter in model.parameters()}
    lost = [parameter for parameter in before.values() if id(parameter) not in left]
    for optimizer in optimizers:
        _forget(undo, optimizer, lost)


def _forget(undo: Undo, optimizer: torch.optim.Optimizer, lost: Sequence[nn.Parameter]) -> None:
    gone = {id(parameter) for parameter in lost}
    for group in optimizer.param_groups:
        kept = [parameter for parameter in group["params"] if id(parameter) not in gone]
        if len(kept) < len(group["params"]):
            undo.keep_item(group, "params")
            group["params"] = kept
    for parameter in lost:
        undo.keep_item(optimizer.state, parameter)
        optimizer.state.pop(parameter, None)
