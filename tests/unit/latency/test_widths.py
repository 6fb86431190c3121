"""Layers at other widths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from decayprune.latency.widths import busiest, resized, widths


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(12, 20, 3, padding=1, stride=2), torch.randn(2, 12, 5, 5)),
        (nn.Conv1d(12, 20, 3), torch.randn(2, 12, 5)),
        (nn.Linear(12, 20), torch.randn(3, 7, 12)),
    ],
    ids=["2d", "1d", "linear"],
)
def test_a_layer_runs_at_other_widths_and_stays_as_it_is(layer: nn.Module, inputs: Tensor) -> None:
    before = {name: p.clone() for name, p in layer.named_parameters()}
    narrow, fewer = resized(layer, inputs, 5, 32)
    assert widths(narrow) == (5, 32)
    out, dense = narrow(fewer), layer(inputs)
    dim = -1 if isinstance(layer, nn.Linear) else 1
    assert out.shape[dim] == 32
    assert out.numel() * 20 == dense.numel() * 32
    assert widths(layer) == (12, 20)
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


def test_depthwise_stays_depthwise_and_channels_last_stays_channels_last() -> None:
    layer = nn.Conv2d(12, 12, 3, groups=12)
    inputs = torch.randn(2, 12, 5, 5).to(memory_format=torch.channels_last)
    narrow, fewer = resized(layer, inputs, 7, 7)
    assert (narrow.groups, narrow.weight.shape) == (7, (7, 1, 3, 3))
    assert fewer.is_contiguous(memory_format=torch.channels_last)
    assert narrow(fewer).shape == (2, 7, 3, 3)


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
