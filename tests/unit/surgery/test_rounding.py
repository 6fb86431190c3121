"""What rounding makes in a model, against a run in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from decayprune.surgery.compare import compare, remember
from decayprune.surgery.rounding import measured
from living import Living

INPUTS = torch.linspace(-1, 1, 24).view(4, 6)


class Amplifier(nn.Module):
    """Multiplies what rounding does to its inner width."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.factor = nn.Linear(6, 64), nn.Linear(64, 5), factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.factor * self.b(self.a(x)))


def permuted(model: Amplifier) -> Amplifier:
    """The same function, added up in another order."""
    other, order = copy.deepcopy(model), torch.randperm(64, generator=torch.Generator())
    with torch.no_grad():
        other.a.weight.copy_(model.a.weight[order])
        other.a.bias.copy_(model.a.bias[order])
        other.b.weight.copy_(model.b.weight[:, order])
    return other


@pytest.mark.parametrize("factor", [1e3, 1e4])
def test_another_order_of_additions_is_explained(factor: float) -> None:
    model = Amplifier(factor)
    before = remember(model, INPUTS)
    found = compare(permuted(model), INPUTS, before)
    assert found.same
    exact = copy.deepcopy(model).double()(INPUTS.double()).detach()
    rounding = float((before.values[0] - exact).abs().max() / exact.abs().max())
    assert measured(model, INPUTS, 1e-4) >= min(rounding, 1e-2)


@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_a_mistake_is_not(factor: float) -> None:
    model = Amplifier(factor)
    before = remember(model, INPUTS)
    with torch.no_grad():
        model.b.weight[:, 3] *= 1.1
    assert not compare(model, INPUTS, before).same


def test_a_plain_model_keeps_the_usual() -> None:
    assert measured(Amplifier(1.0), INPUTS, 1e-4) == 1e-4
    assert measured(Amplifier(1.0).bfloat16(), INPUTS.bfloat16(), 2e-2) <= 0.1


def test_there_is_a_bound() -> None:
    assert measured(Amplifier(1e7), INPUTS, 1e-4) == pytest.approx(1e-2)


def test_a_tolerance_that_was_asked_for_is_kept() -> None:
    model = Amplifier(1e4)
    found = compare(permuted(model), INPUTS, remember(model, INPUTS), tolerance=1e-6)
    assert found.limit == 1e-6
    assert not found.same


def test_nothing_of_the_model_changes() -> None:
    model = Amplifier(1e3)
    before = Living(model)
    measured(model, INPUTS, 1e-4)
    before.check()
