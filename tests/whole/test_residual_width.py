"""Transformers lose heads and inner widths first; the width that all blocks share goes last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from loops import pruner_for


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def left_of_the_stream(macs: float, **options: Any) -> int:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Block(8), Block(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, schedule = torch.randn(4, 6), dp.Schedule(stop=4, decay_steps=4)
    pruner = pruner_for(
        model,
        optimizer,
        inputs=inputs,
        budget=dp.Budget(macs=macs),
        schedule=schedule,
        round_to=None,
        **options,
    )
    for _ in range(8):
        model(inputs).square().sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    report = pruner.compact()
    assert report.macs_after <= macs * report.macs_before
    return model[0].out_features


def test_by_default_it_stays() -> None:
    assert left_of_the_stream(0.5) == 8


def test_unless_the_budget_cannot_be_met_without_it() -> None:
    assert left_of_the_stream(0.1) < 8


def test_asked_for_it_is_pruned_like_others() -> None:
    assert left_of_the_stream(0.5, residual_width=True) < 8


def test_forbidden_it_is_a_refusal() -> None:
    assert left_of_the_stream(0.5, residual_width=False) == 8
    with pytest.raises(ValueError, match=r"budget .* cannot be reached"):
        left_of_the_stream(0.1, residual_width=False)
