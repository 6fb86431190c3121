"""Weight standardisation that counts columns that have left, beside the same with zeros in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import ScaledConv, StandardisedConv
from decayprune.structures.exact.standardised import (
    CountingConv2d,
    standardisation,
    standardised,
)
from decayprune.structures.exact.swap import become, stand_in


def by_hand(weight: Tensor, eps: float, beside: bool, correction: int) -> Tensor:
    """One filter after the other."""
    filters = []
    for one in weight:
        spread = one.std(correction=correction) + eps
        if not beside:
            spread = (one.var(correction=correction) + eps).sqrt()
        filters.append((one - one.mean()) / spread)
    return torch.stack(filters)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("correction", [0, 1])
def test_columns_that_left_are_counted_as_zeros(beside: bool, correction: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 7, 3, 2, dtype=torch.float64) + 1
    weight[:, 4:] = 0
    expected = by_hand(weight, 1e-2, beside, correction)[:, :4]
    found = standardised(weight[:, :4], 7, 1e-2, beside, correction)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_a_filter_of_zeros_stays_one_and_has_a_gradient() -> None:
    for beside in (False, True):
        weight = torch.zeros(2, 3, 1, 1, requires_grad=True)
        out = standardised(weight, 5, 1e-4, beside)
        out[:, 0].sum().backward()
        assert not out.any()
        assert weight.grad is not None
        assert bool(weight.grad.isfinite().all())


class SampleDeviation(nn.Conv1d):
    """The first published code: the deviation of a sample, with the epsilon beside it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        spread = weight.flatten(1).std(1) + 1e-5
        return self._conv_forward(x, weight / spread.view(-1, 1, 1), self.bias)


class FanIn(nn.Conv2d):
    """A factor that is computed from the width in every call, a gain of another name and shape."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.g, self.gamma = nn.Parameter(torch.ones(self.out_channels)), 1.3

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-3)
        weight = weight * self.gamma * self.weight[0].numel() ** -0.5
        return self._conv_forward(x, weight * self.g.view(-1, 1, 1, 1), self.bias)


class SameScaledConv(ScaledConv):
    """Padded so that strides alone shrink the input."""

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for size, k, s in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            missing = max((-(-size // s) - 1) * s + k - size, 0)
            sides += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, sides))


LAYERS = {
    "bare": lambda: StandardisedConv(6, 5, 3),
    "gains": lambda: ScaledConv(6, 8, 3, padding=1, groups=2),
    "depthwise": lambda: ScaledConv(6, 6, 3, groups=6),
    "sample": lambda: SampleDeviation(6, 5, 3, dilation=2),
    "fan in": lambda: FanIn(6, 5, 3),
    "same": lambda: SameScaledConv(6, 5, 3, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_known_by_what_it_computes_and_becomes_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = LAYERS[name]().double()
    x = torch.randn(2, 6, *[9, 10][: len(module.kernel_size)], dtype=torch.float64)
    assert standardisation(module) is not None
    for scale in (1.0, 1e-2, 1e-4):  # the epsilon is felt more and more
        with torch.no_grad():
            module.weight.mul_(scale)
        expected = module(x)
        back = become(module)
        assert type(module) is stand_in(module)
        torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-12)
        back()
        assert type(module) is type(LAYERS[name]())


@pytest.mark.parametrize("name", LAYERS)
def test_without_some_of_its_columns_it_computes_what_it_did_with_zeros(name: str) -> None:
    torch.manual_seed(0)
    module = LAYERS[name]().double()
    width = module.weight.shape[1]
    if width == 1:
        return  # depthwise: there are no columns to leave
    x = torch.randn(2, 6, *[9, 10][: len(module.kernel_size)], dtype=torch.float64)
    stay = torch.arange(6).remainder(width) < width - 1
    with torch.no_grad():
        module.weight[:, -1] = 0
        expected = module(x * stay.view(-1, *[1] * (x.dim() - 2)))
        become(module)
        module.weight.data = module.weight.data[:, :-1].contiguous()
        found = module(x[:, stay])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


class Odd(StandardisedConv):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Plain(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, [1] * 4))


class TwoInputs(StandardisedConv):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x * y)


@pytest.mark.parametrize("kind", [Odd, Plain, TwoInputs, nn.Conv2d])
def test_what_computes_anything_else_is_none(kind: type[nn.Conv2d]) -> None:
    module = kind(3, 4, 3)
    assert standardisation(module) is None
    assert stand_in(module) is None


def test_what_it_is_now_is_read_off_it() -> None:
    module = ScaledConv(6, 4, 3)
    before = standardisation(module)
    become(module)
    assert isinstance(module, CountingConv2d)
    assert standardisation(module) == before
    assert "counted=6" in repr(module)
