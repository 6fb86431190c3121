"""Widths of layers."""

from __future__ import annotations

import torch
from torch import nn

from decayprune.latency.widths import busiest, widths


def test_the_busiest_layer_counts_positions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 27 * 8 * 64 places
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1000),
    )
    inputs = torch.zeros(1, 3, 8, 8)
    layer = busiest(model, lambda: model(inputs))
    assert layer is model[0]
    assert not layer._forward_hooks
    assert busiest(nn.ReLU(), lambda: None) is None


def test_widths_are_what_goes_in_and_what_comes_out() -> None:
    assert widths(nn.Linear(12, 20)) == (12, 20)
    assert widths(nn.Conv2d(12, 24, 3, groups=2)) == (12, 24)
