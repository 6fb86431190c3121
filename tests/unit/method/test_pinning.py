"""What is zeroed again after a step, and what is noticed."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from decayprune.method.live_weights import LiveWeights
from decayprune.method.pinning import Pinning
from decayprune.structures import trace


def two_layers() -> tuple[nn.Sequential, LiveWeights, Pinning]:
    """Structures 0 to 4 are the channels between."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    structures = trace(model, torch.randn(2, 3))
    weights = LiveWeights(structures, dict(model.named_parameters()), [])
    return model, weights, Pinning(structures, weights, carriers=False)


def only(*structures: int) -> torch.Tensor:
    return torch.isin(torch.arange(5), torch.tensor(structures))


def pruned(*structures: int) -> Callable[[], Tensor]:
    """What is asked for them."""
    return lambda: only(*structures)


def column_is_zero(model: nn.Sequential) -> list[bool]:
    return (model[2].weight == 0).all(0).tolist()


@torch.no_grad()
def test_what_training_revives_is_zeroed_after_every_step() -> None:
    model, weights, pinning = two_layers()
    weights.unpinned |= only(1)
    for step in (1, 2):
        model[2].weight += 1
        pinning.after(step, pruned(1, 3))
        assert column_is_zero(model) == [False, True, False, False, False]
    pinning.forget()
    weights.unpinned |= only(3)
    pinning.after(3, pruned(1, 3))
    assert column_is_zero(model) == [False, True, False, True, False]


@torch.no_grad()
def test_what_comes_back_is_noticed_at_a_look_and_zeroed_from_then_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, _, pinning = two_layers()
    with caplog.at_level(logging.WARNING, "decayprune"):
        pinning.after(1, pruned(3))
        assert not caplog.records
        pinning.look(2)
        pinning.after(2, pruned(3))
    assert "1 pruned structures are zero no longer (the first: channel 3 of 0)" in caplog.text
    assert column_is_zero(model) == [False, False, False, True, False]
    model[2].weight += 1
    pinning.after(3, pruned(3))
    assert column_is_zero(model)[3]


@torch.no_grad()
def test_what_came_back_is_still_zeroed_after_a_resume() -> None:
    _, _, pinning = two_layers()
    pinning.look(1)
    pinning.after(1, pruned(3))  # it is alive: noticed, and zeroed from now on
    saved = pinning.state_dict() | {"steps": 1}
    other, weights, resumed = two_layers()
    resumed.load_state_dict(saved)
    resumed.after(2, pruned(1, 3))
    assert column_is_zero(other) == [False, False, False, True, False]
    assert [resumed.looks(step) for step in (2, 65)] == [False, True]
    weights.unpinned |= True
    assert saved["pinning"]["unpinned"].tolist() == [False, False, False, True, False]

    resumed.load_state_dict({"steps": 7})  # of an older version: it is looked at once
    assert resumed.looks(8)
    saved["pinning"]["unpinned"] = saved["pinning"]["unpinned"].float()
    with pytest.raises(ValueError, match=r"pinning.unpinned is of torch.float32"):
        resumed.load_state_dict(saved)
    assert weights.unpinned.all()


@torch.no_grad()
def test_carriers_alone() -> None:
    model, weights, _ = two_layers()
    structures = trace(model, torch.randn(2, 3))
    before = model[2].weight.clone()
    Pinning(structures, weights, carriers=True).after(1, pruned(2))
    assert (model[0].weight == 0).all(1).tolist() == [False, False, True, False, False]
    assert torch.equal(model[2].weight, before)


@torch.no_grad()
def test_what_was_zeroed_last_is_zeroed_once_more() -> None:
    model, weights, pinning = two_layers()
    pinning.zero_()  # nothing is known yet
    assert not any(column_is_zero(model))
    weights.unpinned |= only(1)
    pinning.after(1, pruned(1))
    held = pinning.zeroed
    model[2].weight += 1
    pinning.zero_()
    assert column_is_zero(model) == [False, True, False, False, False]
    assert pinning.zeroed is held
    pinning.look(4)
    assert [pinning.looks(step) for step in (3, 4, 5)] == [False, True, False]
