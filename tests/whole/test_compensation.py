"""A pruner that calibrates: better cuts at once, and everything else as without."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.compensation.calibration import calibrate
from decayprune.compensation.sensitivity import sensitivity
from loops import OPTIMIZERS, batches, net, pruner_for, same, train

DATA = [images for images, _ in batches(4, first=100)]


def trained() -> nn.Module:
    model = net()
    train(model, torch.optim.Adam(model.parameters(), lr=0.01), 60)
    return model


def cut_at_once(model: nn.Module, **options: Any) -> nn.Module:
    """Half of the MACs gone after one step that does not train."""
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = dp.Schedule(start=0, stop=1, decay_steps=1)
    pruner = pruner_for(model, still, schedule=schedule, rectify=None, **options)
    train(model, still, 1, pruner)
    pruner.compact()
    return model


def error(model: nn.Module, expected: list[torch.Tensor]) -> float:
    model.eval()
    pairs = zip(DATA, expected, strict=True)
    return sum(float((model(x) - y).detach().square().mean()) for x, y in pairs)


def test_the_function_survives_a_cut_much_better() -> None:
    model = trained().eval()
    expected = [model(x).detach() for x in DATA]
    plain = error(cut_at_once(copy.deepcopy(model)), expected)
    ranked = error(cut_at_once(copy.deepcopy(model), calibrate=DATA), expected)
    assert ranked < 0.5 * plain


@pytest.mark.parametrize("importance", ["sensitivity", "variance"])
def test_what_ranks_on_data_asks_for_some(importance: str) -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    with pytest.raises(ValueError, match=f"importance='{importance}' ranks by what happens on"):
        pruner_for(model, optimizer, importance=importance)


def test_with_calibration_the_default_ranks_by_sensitivity() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer, calibrate=DATA)
    state = pruner.state_dict()
    assert state["settings"]["importance"] == "sensitivity"
    expected = sensitivity(
        model, pruner.structures, DATA, calibrate(model, pruner.structures, DATA)
    )
    torch.testing.assert_close(state["sensitivity"], expected)
    pruner.close()
    pruner = pruner_for(model, optimizer, calibrate=DATA, importance="magnitude")
    assert pruner.state_dict()["settings"]["importance"] == "magnitude"


def begun(steps: int) -> tuple[nn.Module, torch.optim.Optimizer, dp.DecayPruner]:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pruner = pruner_for(model, optimizer, calibrate=DATA)
    train(model, optimizer, steps, pruner)
    return model, optimizer, pruner


def test_releases_and_resume_bit_for_bit() -> None:
    straight, optimizer, pruner = begun(9)
    assert any(event.kind == "release" for event in pruner.events)
    buffer = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict(), pruner.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    train(straight, optimizer, 15, pruner, first=9)

    model = net(seed=5)
    resumed = OPTIMIZERS["AdamW"](model.parameters())
    again = pruner_for(model, resumed, calibrate=DATA)
    for part, state in zip((model, resumed, again), saved, strict=True):
        part.load_state_dict(state)
    train(model, resumed, 15, again, first=9)

    assert again.finished
    assert same(straight, model)
    assert again.compact().macs_after <= 0.5 * again.compact().macs_before


def test_the_optimizer_is_not_suspected_of_what_compensation_writes() -> None:
    _, _, pruner = begun(24)
    for _ in range(3):  # calls without a step of the optimizer, as in accumulation
        pruner.step()
    assert pruner.finished
