"""Operators of torchvision: a cut model computes what the model with zeros computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d, roi_align, roi_pool

from cases import Lambda
from decayprune.structures import trace
from reference.cut import cut, error, run, zeroed

BOX = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0], [1, 1.0, 0.0, 3.0, 4.0]], dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pool", [roi_align, roi_pool])
def test_regions_and_deformed_convolutions_treat_channels_alike(pool, bias: bool) -> None:
    def forward(m, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        y = deform_conv2d(x, m.offset(x), m.b.weight, m.b.bias, padding=1)
        return m.head(pool(y, BOX, 2))

    model = Lambda(
        forward,
        a=nn.Conv2d(3, 6, 3),
        offset=nn.Conv2d(6, 18, 3, padding=1),
        b=nn.Conv2d(6, 5, 3, bias=bias),
        head=nn.Conv2d(5, 3, 1),
    ).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    structures = trace(model, x)
    assert [(g.layer, g.size) for g in structures.groups] == [("a", 6), ("b", 5)]
    assert [(r.layer, r.reason.partition(" (")[0]) for r in structures.refusals] == [
        ("offset", "used as coordinates"),
        ("head", "the model's output"),
    ]
    gone = {1, 7}
    found = run(cut(model, structures, gone), x)
    assert error(run(zeroed(model, structures, gone), x), found) < 1e-10
    counted = [o.constant for o in structures.operators if o.layer == "b"]
    assert counted == [2 * 6 * 6 * 9]  # batch, places, kernel
