"""Normalisers are known by what they compute, whatever they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import ChannelsFirst, GammaLayerNorm, OnePlusNorm, OwnForward, PlainRMSNorm
from decayprune.structures.exact.normalisers import Normaliser, is_group_norm, normaliser
from decayprune.structures.exact.swap import become


class TwoFormats(nn.LayerNorm):
    """As ConvNeXt of transformers: one class, two formats."""

    def __init__(self, width: int, channels_first: bool) -> None:
        super().__init__(width)
        self.first = channels_first

    def forward(self, input: Tensor) -> Tensor:
        if not self.first:
            return super().forward(input)
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Rms2d(PlainRMSNorm):
    """Over dimension 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Activated(nn.LayerNorm):
    """As timm has them: what follows lies inside."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class ActivatedGroups(nn.GroupNorm):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


KNOWN: dict[str, tuple[nn.Module, Normaliser]] = {
    "layer": (nn.LayerNorm(5), Normaliser(5, True, False, 1e-5, "weight", "bias")),
    "bare": (nn.LayerNorm(5, elementwise_affine=False), Normaliser(5, True, weight=None)),
    "own, last": (OwnForward(2, eps=1e-3), Normaliser(2, True, False, 1e-3, "weight", "bias")),
    "own, first": (ChannelsFirst(2), Normaliser(2, True, True, 1e-5, "weight", "bias")),
    "two, last": (TwoFormats(5, False), Normaliser(5, True, False, 1e-5, "weight", "bias")),
    "two, first": (TwoFormats(5, True), Normaliser(5, True, True, 1e-5, "weight", "bias")),
    "activated": (Activated(5), Normaliser(5, True, False, 1e-5, "weight", "bias")),
    "other names": (GammaLayerNorm(5), Normaliser(5, True, True, 1e-6, "gamma", "beta")),
    "rms": (nn.RMSNorm(5), Normaliser(5, False, False, None, "weight")),
    "own rms": (PlainRMSNorm(5), Normaliser(5, False, False, 1e-3, "weight")),
    "rms, first": (Rms2d(5), Normaliser(5, False, True, 1e-3, "weight")),
    "one plus": (OnePlusNorm(5), Normaliser(5, False, False, 1e-6, "weight", offset=1.0)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_module_computes_is_found(name: str) -> None:
    module, expected = KNOWN[name]
    before = {n: p.clone() for n, p in module.named_parameters()}
    assert normaliser(module) == expected
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


class BiasFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (5,), self.scale, self.shift, 1e-6)


def test_what_scales_is_told_from_what_shifts() -> None:
    assert normaliser(BiasFirst()) == Normaliser(5, True, False, 1e-6, "scale", "shift")


class Unknown(PlainRMSNorm):
    def __init__(self, function: Any) -> None:
        super().__init__(4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(super().forward(x), x, self.weight)


class Gated(PlainRMSNorm):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x if gate is None else x * gate)


@pytest.mark.parametrize(
    "module",
    [
        Unknown(lambda y, x, w: y + x),
        Unknown(lambda y, x, w: x * w),
        Unknown(lambda y, x, w: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 0.1) * w),
        Unknown(lambda y, x, w: y[..., :2]),
        Gated(4),  # what it computes with a gate nobody knows
        nn.LayerNorm((3, 4)),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
        nn.PReLU(4),
        nn.Sequential(nn.LayerNorm(4)),
        nn.Identity(),
    ],
)
def test_what_computes_something_else_is_none(module: nn.Module) -> None:
    assert normaliser(module) is None


def test_random_numbers_are_left_alone() -> None:
    class Noisy(PlainRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn_like(x)

    noisy, before = Noisy(4), torch.random.get_rng_state()
    assert normaliser(noisy) is None
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", [n for n in KNOWN if "bare" not in n])
def test_a_stand_in_computes_the_same(name: str) -> None:
    module = KNOWN[name][0].double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, *[module_width(module)] * 3, dtype=torch.float64)
    expected = module(x)
    back = become(module)
    assert torch.allclose(module(x), expected, 1e-12, 1e-12)
    back()


def module_width(module: nn.Module) -> int:
    return next(module.parameters()).numel()


def test_a_group_norm_may_have_a_forward_of_its_own() -> None:
    class Own(nn.GroupNorm):
        def forward(self, input: Tensor) -> Tensor:
            return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    class Residual(nn.GroupNorm):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + input

    assert is_group_norm(Own(2, 6))
    assert is_group_norm(nn.GroupNorm(2, 6))
    assert not is_group_norm(Residual(2, 6))
    assert not is_group_norm(nn.LayerNorm(6))


@pytest.mark.parametrize("make", [lambda: ActivatedGroups(2, 6), lambda: Activated(6)])
def test_what_follows_inside_is_run_and_nobody_who_watches_it_is_told(make: Any) -> None:
    module, calls = make().double(), []
    module.act.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = module(x)
    assert calls == [1]
    back = become(module)
    assert calls == [1]
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)
    assert len(calls) == 2
    back()
    assert not hasattr(module, "followed")


def test_what_inside_holds_tensors_is_no_activation() -> None:
    module = ActivatedGroups(2, 6)
    module.act = nn.PReLU()
    assert not is_group_norm(module)
    own = Activated(6)
    own.act = nn.BatchNorm1d(6)
    assert normaliser(own) is None
