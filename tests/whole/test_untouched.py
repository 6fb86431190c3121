"""Looking at a model, or building a pruner for it, changes nothing of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
from cases import CASES
from decayprune.structures import trace
from living import Living


def build(model: nn.Module, inputs: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    budget, schedule = dp.Budget(params=0.9), dp.Schedule(stop=4, decay_steps=2)
    with suppress(ValueError):  # nothing to prune, or not enough: it was tried all the same
        dp.DecayPruner(model, optimizer, inputs, budget=budget, schedule=schedule)


@pytest.mark.parametrize("look", [trace, dp.inspect, build])
@pytest.mark.parametrize("case", sorted(CASES))
def test_nothing_of_the_model_changes(case: str, look: Any) -> None:
    model, inputs = CASES[case]()
    for number, module in enumerate(model.modules()):
        module.training = number % 3 > 0
    living = Living(model)
    look(model, inputs)
    living.check()
