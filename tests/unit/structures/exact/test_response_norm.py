"""Global response normalisation: known by what it computes, exact when channels leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import ResponseNorm as Last
from cases import ResponseNormFirst as First
from decayprune.structures import trace
from decayprune.structures.exact.response_norm import (
    CountingResponseNorm,
    ResponseNorm,
    counting_response_norm,
    response_norm,
)
from decayprune.structures.exact.swap import become, counted_width
from reference.cut import cut, zeroed

KNOWN: dict[str, tuple[nn.Module, ResponseNorm]] = {
    "last": (Last(5), ResponseNorm(5, 1e-6, False, ("weight", "bias"))),
    "an epsilon of its own": (Last(5, 0.03), ResponseNorm(5, 0.03, False, ("weight", "bias"))),
    "a small one": (Last(6, 1e-12), ResponseNorm(6, 1e-12, False, ("weight", "bias"))),
    "as wide as high": (Last(3), ResponseNorm(3, 1e-6, False, ("weight", "bias"))),
    "first": (First(5), ResponseNorm(5, 1e-4, True, ("gamma", "beta"))),
    "first, as wide as high": (First(4), ResponseNorm(4, 1e-4, True, ("gamma", "beta"))),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_module_computes_is_found(name: str) -> None:
    module, expected = KNOWN[name]
    before = {n: p.clone() for n, p in module.named_parameters()}
    assert response_norm(module) == expected
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


class Without(Last):
    """Its input is not added."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x


class Largest(Last):
    """The strongest response instead of their mean."""

    def forward(self, x: Tensor) -> Tensor:
        strength = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = strength / (strength.amax(-1, keepdim=True) + self.eps)
        return self.weight * (x * share) + self.bias + x


@pytest.mark.parametrize(
    "module", [Without(5), Largest(5), nn.LayerNorm(5), nn.Linear(5, 5), nn.BatchNorm2d(5)]
)
def test_what_computes_something_else_is_none(module: nn.Module) -> None:
    assert response_norm(module) is None


@pytest.mark.parametrize("first", [False, True])
def test_channels_that_are_missing_count_as_zeros(first: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4, 6).double(), torch.randn(6).double(), torch.zeros(6)
    bias = torch.cat([torch.randn(4), bias[4:]]).double()
    x[..., 4:] = 0
    expected = torch.empty_like(x)
    for b in range(2):  # one channel after the other, in plain words
        strength = [float(x[b, :, :, c].pow(2).sum() ** 0.5) for c in range(6)]
        for c in range(6):
            share = strength[c] / (sum(strength) / 6 + 1e-6)
            expected[b, :, :, c] = x[b, :, :, c] * (1 + float(weight[c]) * share) + float(bias[c])
    there = x[..., :4].movedim(-1, 1) if first else x[..., :4]
    found = counting_response_norm(there, 6, weight[:4], bias[:4], 1e-6, first)
    found = found.movedim(1, -1) if first else found
    torch.testing.assert_close(found, expected[..., :4], rtol=1e-13, atol=1e-13)
    assert not expected[..., 4:].any()


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 6), norm, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(nn.functional.gelu(self.up(x))))


def test_a_width_before_it_is_cut_exactly() -> None:
    torch.manual_seed(0)
    model, x = Block(Last(6)).double(), torch.randn(2, 3, 5, 4).double()
    structures = trace(model, x)
    assert [(group.layer, group.size) for group in structures.groups] == [("up", 6)]
    smaller = cut(model, structures, {1, 4})
    assert isinstance(smaller.norm, CountingResponseNorm)
    assert smaller.norm.normalized_shape == (4,)
    torch.testing.assert_close(
        smaller(x), zeroed(model, structures, {1, 4})(x), rtol=1e-13, atol=1e-13
    )
    again = trace(smaller, x)  # and once more
    assert [(group.layer, group.size) for group in again.groups] == [("up", 4)]
    torch.testing.assert_close(
        cut(smaller, again, {0})(x), zeroed(smaller, again, {0})(x), rtol=1e-13, atol=1e-13
    )


def test_a_stand_in_finds_the_way_back() -> None:
    module = First(5)
    back = become(module)
    assert (type(module), counted_width(module)) == (CountingResponseNorm, 5)
    assert response_norm(module) == KNOWN["first"][1]
    assert repr(module) == "CountingResponseNorm((5,), eps=0.0001, counted=5)"
    back()
    assert type(module) is First
    assert not {"counted", "replaced", "normalized_shape"} & set(vars(module))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
@pytest.mark.parametrize("module", [Last(5), First(5)])
def test_it_can_be_scripted(module: Any) -> None:
    become(module)
    module.double()
    scripted = torch.jit.script(nn.Sequential(module, nn.ReLU()))
    x = torch.randn(2, 5, 5, 5).double()
    torch.testing.assert_close(scripted(x), module(x).relu(), rtol=0, atol=1e-14)
