"""The widths that suit a machine, with machines made up."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from decayprune.latency.widths import UNITS, busiest, round_to


def machine(block: int, narrow: list[nn.Module]) -> Callable[[Callable[[], Tensor]], float]:
    """A processor that works on whole blocks of channels, and counts nothing else."""

    def timer(call: Callable[[], Tensor]) -> float:
        out = call()  # the layer really runs at this width
        layer = call.func
        narrow.append(layer)
        wide_in, dim = layer.weight.shape[1], 1 if out.dim() == 4 else -1
        return math.ceil(wide_in / block) * math.ceil(out.shape[dim] / block) * block**2

    return timer


@pytest.mark.parametrize("block", UNITS)
@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(128, 256, 3, padding=1), torch.zeros(2, 128, 5, 5)),
        (nn.Linear(256, 192), torch.zeros(3, 7, 256)),
    ],
    ids=["convolution", "linear"],
)
def test_the_block_of_the_machine_is_found(block: int, layer: nn.Module, inputs: Tensor) -> None:
    seen: list[nn.Module] = []
    shapes = {name: p.shape for name, p in layer.named_parameters()}
    assert round_to(layer, inputs, machine(block, seen)) == block
    assert len(seen) == len(UNITS)
    assert {name: p.shape for name, p in layer.named_parameters()} == shapes


def test_small_layers_are_tried_at_widths_of_at_least_one_unit() -> None:
    assert round_to(nn.Linear(3, 5), torch.zeros(1, 3), machine(1, [])) == 1


def test_the_busiest_layer_counts_positions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 27 * 8 * 64 places
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1000),
    )
    inputs = torch.zeros(1, 3, 8, 8)
    layer, example = busiest(model, lambda: model(inputs))
    assert layer is model[0]
    assert torch.equal(example, inputs)
    assert not layer._forward_hooks
    assert busiest(nn.ReLU(), lambda: None) is None
