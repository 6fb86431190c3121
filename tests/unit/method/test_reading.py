"""What is read before an optimizer steps, against loops over rows in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from decaying import begun
from decayprune.method.live_weights import LiveWeights
from decayprune.method.members import Members
from decayprune.method.reading import Reading

WEIGHT_DECAY, LR = 0.1, 0.5


def read(parts: int = 1) -> tuple[LiveWeights, Members, Reading, list[torch.optim.Optimizer]]:
    """Gradients of channels 1 and 4, whose carriers are rows of a weight and a bias."""
    state, weights = begun()
    generator = torch.Generator().manual_seed(3)
    for parameter in weights.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    held = list(weights.parameters.values())
    shares = [held[i::parts] for i in range(parts)]
    optimizers = [torch.optim.SGD(share, LR, weight_decay=WEIGHT_DECAY) for share in shares]
    members = Members.of(state, weights, whole=False)
    return weights, members, Reading(weights, optimizers), list(optimizers)


def expected(weights: LiveWeights, channel: int, factor: float = 1.0) -> float:
    """``-<g, w> / ||w||`` with the length that the state says, 1."""
    total = 0.0
    for name in ("0.weight", "0.bias"):
        parameter = weights.parameters[name]
        assert parameter.grad is not None
        for w, g in zip(
            parameter[channel].flatten(), parameter.grad[channel].flatten(), strict=True
        ):
            total -= w.item() * g.item()
    return total * factor


@pytest.mark.parametrize("parts", [1, 2])
def test_the_resistance_of_all_optimizers_together(parts: int) -> None:
    weights, members, reading, optimizers = read(parts)
    state, _ = begun()
    assert reading.resistance(state) is None
    for number, optimizer in enumerate(optimizers):
        reading.remember(members, state, optimizer, first=number == 0, grad_scale=2.0)
    found = reading.resistance(state)
    assert found is not None
    assert float(found[1]) == pytest.approx(expected(weights, 1, 0.5), rel=1e-5)
    assert float(found[4]) == pytest.approx(expected(weights, 4, 0.5), rel=1e-5)
    shrunk = torch.as_tensor(reading.shrunk)[[1, 4]]
    assert shrunk.tolist() == pytest.approx([LR * WEIGHT_DECAY] * 2)  # of the length, 1


def test_what_was_observed_is_not_read_again_until_the_next_step() -> None:
    weights, members, reading, (optimizer,) = read()
    state, _ = begun()
    reading.observe(members)
    wanted = expected(weights, 1)
    for parameter in weights.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    reading.remember(members, state, optimizer, first=True, grad_scale=1.0)
    found = reading.resistance(state)
    assert found is not None
    assert float(found[1]) == pytest.approx(wanted, rel=1e-5)
    assert reading.observed
    assert reading
    reading.forget()
    assert not reading
    assert not reading.observed
    reading.remember(members, state, optimizer, first=True, grad_scale=1.0)
    found = reading.resistance(state)
    assert found is not None
    assert float(found[1]) == 0


def test_nobody_else_is_read() -> None:
    weights, members, reading, _ = read()
    reading.observe(members)
    state, _ = begun()
    found = reading.resistance(state)
    assert found is not None
    assert found[[0, 2, 3]].tolist() == [0, 0, 0]
    assert isinstance(weights.parameters["2.weight"], nn.Parameter)
