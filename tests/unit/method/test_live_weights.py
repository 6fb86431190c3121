"""Slices of structures in live parameters, against the tensors that they lie in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from decayprune.method.live_weights import LiveWeights
from decayprune.structures import trace

IDS = [1, 4]
CHOSEN = torch.tensor([False, True, False, False, True, False])


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def live(model: nn.Sequential, *optimizers: torch.optim.Optimizer) -> LiveWeights:
    """Structure ``i`` is neuron ``i``: a row, its bias, and the column that reads it."""
    structures = trace(model, torch.zeros(1, 3, dtype=torch.float64))
    assert structures.num_structures == 6
    return LiveWeights(structures, dict(model.named_parameters()), list(optimizers))


def norm(*parts: Tensor) -> Tensor:
    return torch.cat([part.detach().flatten() for part in parts]).norm()


def test_lengths_with_and_without_the_readers(model: nn.Sequential) -> None:
    weights, (first, _, last) = live(model), model
    own = [norm(first.weight[i], first.bias[i]) for i in IDS]
    all_ = [norm(first.weight[i], first.bias[i], last.weight[:, i]) for i in IDS]
    torch.testing.assert_close(weights.length(weights.carriers(CHOSEN))[IDS], torch.stack(own))
    torch.testing.assert_close(weights.length(weights.every(CHOSEN))[IDS], torch.stack(all_))
    assert not weights.length(weights.every(CHOSEN))[~CHOSEN].any()


def test_a_gradient_that_is_not_there_counts_as_zeros(model: nn.Sequential) -> None:
    weights, first = live(model), model[0]
    first.weight.grad = torch.randn_like(first.weight)
    expected = (first.weight * first.weight.grad).sum(1).detach()
    found = weights.along(weights.carriers(CHOSEN))
    torch.testing.assert_close(found, torch.where(CHOSEN, expected, 0.0))
    first.bias.grad = torch.randn_like(first.bias)
    more = expected + (first.bias * first.bias.grad).detach()
    found = weights.along(weights.carriers(CHOSEN))
    torch.testing.assert_close(found, torch.where(CHOSEN, more, 0.0))


def test_the_slices_that_one_optimizer_trains(model: nn.Sequential) -> None:
    first, _, last = model
    one = torch.optim.SGD(first.parameters(), lr=0.1)
    two = torch.optim.SGD(last.parameters(), lr=0.1)
    weights = live(model, one, two)
    pick = weights.every(CHOSEN)
    assert set(weights.held_by(one, pick).names) == {"0.weight", "0.bias"}
    assert set(weights.held_by(two, pick).names) == {"2.weight"}
    both = torch.optim.SGD(model.parameters(), lr=0.1)
    assert weights.held_by(both, pick) is pick


def test_zeros_are_written_to_weights_and_moments_of_these_alone(model: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weights, (first, _, last) = live(model, optimizer), model
    weights.zero_(CHOSEN)
    others = [0, 2, 3, 5]
    held = [{"value": p, **optimizer.state[p]} for p in (first.weight, first.bias, last.weight)]
    for key in ("value", "exp_avg", "exp_avg_sq"):
        row, bias, column = (state[key] for state in held)
        assert not row[IDS].any()
        assert not bias[IDS].any()
        assert not column[:, IDS].any()
        assert row[others].all()
        assert bias[others].all()
        assert column[:, others].all()
    assert all(state["step"] == 1 for state in held)
    assert last.bias.all()
    assert optimizer.state[last.bias]["exp_avg"].all()


def test_half_precision_is_noticed(model: nn.Sequential) -> None:
    assert not live(model).half
    structures = trace(model, torch.zeros(1, 3, dtype=torch.float64))
    parameters = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    assert LiveWeights(structures, parameters, []).half
