"""Every pattern of the zoo through the front door: decay, meet a budget, cut, nothing changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import decayprune as dp
from cases import CASES
from decayprune.structures import trace
from reference.cut import error, run


def loss_of(model: nn.Module, inputs: Any) -> Tensor:
    """The mean square of everything the model returns."""
    if isinstance(inputs, dict):
        outputs = model(**inputs)
    else:
        outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    found = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    return sum((x.square().mean() for x in found), torch.zeros(()))


def decayed(name: str) -> tuple[nn.Module, Any, dp.DecayPruner, torch.optim.Optimizer]:
    model, inputs = CASES[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(structures=0.7),
        schedule=dp.Schedule(stop=2, rounds=1, decay_steps=3),
    )
    for _ in range(6):
        loss_of(model, inputs).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.finished
    return model, inputs, pruner, optimizer


@pytest.mark.parametrize("name", CASES)
def test_decay_prune_and_cut(name: str) -> None:
    model, inputs, pruner, optimizer = decayed(name)
    before = run(model, inputs)
    report = pruner.compact()
    assert report.removed > 0
    assert report.macs_after < report.macs_before
    assert error(before, run(model, inputs)) < 1e-9
    assert report.params_after == sum(p.numel() for p in model.parameters())
    model.train()
    loss_of(model, inputs).backward()  # and training goes on
    optimizer.step()


NORMS = (
    "mixing_norms",
    "counting_norms",
    "vision_transformer",
    "padded_encoder",
    "cross_attention",
)


@pytest.mark.parametrize("name", NORMS)
def test_a_cut_model_can_be_cut_again(name: str) -> None:
    model, inputs, pruner, optimizer = decayed(name)
    pruner.compact()
    again = trace(model, inputs)
    assert {g.layer for g in again.groups} <= {g.layer for g in pruner.structures.groups}
    kept = pruner.structures.num_structures - int(pruner.lifecycle.pruned.sum())
    assert again.num_structures <= kept  # a width of one structure left is none any more
    second = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(structures=0.8),
        schedule=dp.Schedule(stop=1, rounds=1, decay_steps=1),
        rectify=None,
    )
    loss_of(model, inputs).backward()
    optimizer.step()
    second.step()
    before = run(model, inputs)
    second.compact()
    assert error(before, run(model, inputs)) < 1e-9


@pytest.mark.parametrize("name", NORMS)
def test_a_cut_model_is_copied_printed_saved_and_loaded(name: str, tmp_path: Any) -> None:
    model, inputs, pruner, _ = decayed(name)
    pruner.compact()
    expected = run(model, inputs)
    assert all(map(torch.equal, expected, run(copy.deepcopy(model), inputs)))
    dp.save(tmp_path, model)
    loaded = dp.load(tmp_path, CASES[name]()[0])
    assert all(map(torch.equal, expected, run(loaded, inputs)))
    assert str(loaded) == str(model)
    assert dp.load(tmp_path, loaded) is loaded  # a model that was cut already
    assert all(map(torch.equal, expected, run(loaded, inputs)))


# torch.export of torch 2.6 warns of constants that it lifts itself.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.filterwarnings("ignore:Node lifted_tensor:UserWarning")
@pytest.mark.parametrize("name", NORMS)
def test_a_cut_model_is_exported(name: str) -> None:
    model, inputs, pruner, _ = decayed(name)
    pruner.compact()
    model.eval()
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    exported = torch.export.export(model, arguments).module()
    with torch.no_grad():
        found = tree_leaves(exported(*arguments))
    assert error(run(model, inputs), found) < 1e-9
