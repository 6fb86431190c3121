"""Slices of structures in live parameters, against the tensors that they lie in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from decayprune.method.live_weights import LiveWeights
from decayprune.structures import edits, trace

IDS = torch.tensor([1, 4])


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
    torch.testing.assert_close(weights.length(weights.carriers(IDS)), torch.stack(own))
    torch.testing.assert_close(weights.length(weights.every(IDS)), torch.stack(all_))


def test_a_gradient_that_is_not_there_counts_as_zeros(model: nn.Sequential) -> None:
    weights, first = live(model), model[0]
    first.weight.grad = torch.randn_like(first.weight)
    pick = weights.carriers(IDS)
    gradients = weights.gradients(pick)
    expected = first.weight.grad[IDS].square().sum(1)
    torch.testing.assert_close(edits.dot(pick, gradients, gradients), expected)


def test_what_was_read_is_a_copy(model: nn.Sequential) -> None:
    weights = live(model)
    pick = weights.every(IDS)
    before, lengths = weights.read(pick), weights.length(pick)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(edits.dot(pick, before, before).sqrt(), lengths)
    torch.testing.assert_close(weights.length(pick), 2 * lengths)


def test_only_the_slices_of_the_optimizer_that_is_about_to_step_are_read_anew(
    model: nn.Sequential,
) -> None:
    first, _, last = model
    one = torch.optim.SGD(first.parameters(), lr=0.1)
    two = torch.optim.SGD(last.parameters(), lr=0.1)
    weights = live(model, one, two)
    pick = weights.every(IDS)
    before = weights.read_anew(pick, None, one)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    now = weights.read_anew(pick, before, one)
    whole, left = edits.dot(pick, before, before), edits.dot(pick, now, now)
    assert (left > 0).all()  # the columns that `two` trains are as they were
    assert (left < whole).all()
    assert (edits.dot(pick, *2 * (weights.read_anew(pick, now, two),)) == 0).sum() == 2
    assert (edits.dot(pick, *2 * (weights.read_anew(pick, now, None),)) == 0).all()


def test_zeros_are_written_to_weights_and_moments_of_these_alone(model: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weights, (first, _, last) = live(model, optimizer), model
    weights.zero_(IDS)
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
