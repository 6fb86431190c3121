"""What weight decay takes is what the optimizer takes where there is no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decayprune.method.live_weights import LiveWeights
from decayprune.method.weight_decay import WeightDecay
from decayprune.structures import StructureMap, trace

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.02),
}


def net() -> tuple[nn.Module, StructureMap]:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    return model, trace(model, torch.zeros(1, 3, dtype=torch.float64))


def told(model: nn.Module, structures: StructureMap, optimizer: torch.optim.Optimizer) -> Any:
    """What weight decay is said to take from each structure, and the lengths before."""
    weights = LiveWeights(structures, dict(model.named_parameters()), [optimizer])
    pick = weights.carriers(torch.ones(structures.num_structures, dtype=torch.bool))
    length = weights.length(pick)
    return WeightDecay([optimizer], weights.parameters).shrinkage(pick, length), length


def stepped(model: nn.Module, structures: StructureMap, optimizer: torch.optim.Optimizer) -> Tensor:
    """Lengths after a step with zero gradients."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return told(model, structures, optimizer)[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_what_a_step_without_gradients_takes(name: str) -> None:
    model, structures = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    shrinkage, length = told(model, structures, optimizer)
    assert (shrinkage > 0).all()
    torch.testing.assert_close(shrinkage, length - stepped(model, structures, optimizer))


def test_each_group_has_its_own_rate() -> None:
    """The bias is spared; what the weights lose counts for the part of the length they make up."""
    model, structures = net()
    groups = [
        {"params": [model[0].weight], "weight_decay": 0.5, "lr": 0.01},  # type: ignore[index]
        {"params": [model[0].bias, *model[2].parameters()]},  # type: ignore[index]
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    shrinkage, length = told(model, structures, optimizer)
    rows = model[0].weight.square().sum(1)  # type: ignore[index,operator]
    torch.testing.assert_close(shrinkage, (0.5 * 0.01 * rows / length).detach())


def test_momentum_takes_more_once_it_has_settled() -> None:
    model, structures = net()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.02)
    heavy = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.02, momentum=0.9)
    once, more = told(model, structures, plain)[0], told(model, structures, heavy)[0]
    torch.testing.assert_close(more, 10 * once)


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.Adam(p, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.1)],
    ids=["coupled", "none"],
)
def test_where_nothing_shrinks_by_itself(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, structures = net()
    assert told(model, structures, make(model.parameters()))[0] == 0


def test_learning_rates_are_read_anew() -> None:
    model, structures = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    before = told(model, structures, optimizer)[0]
    optimizer.param_groups[0]["lr"] /= 4
    torch.testing.assert_close(told(model, structures, optimizer)[0], before / 4)


def test_a_learning_rate_that_is_a_tensor_is_not_asked_for_its_value() -> None:
    """As it is where steps are captured; the value is the same."""
    model, structures = net()
    one = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), weight_decay=0.02)
    plain = OPTIMIZERS["AdamW"](model.parameters())
    found, expected = told(model, structures, one)[0], told(model, structures, plain)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
