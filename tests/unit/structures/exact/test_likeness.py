"""Modules that are alike share a key; what a probe could notice tells them apart."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from decayprune.structures.exact.likeness import likeness
from decayprune.structures.tracing.sizes import Origin, Readings, Size


class Norm(nn.Module):
    def __init__(self, width: int = 4, eps: float = 1e-6, act: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), None
        self.width, self.eps, self.shape, self.act = width, eps, (width,), act

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_values_of_parameters_and_hooks_make_no_difference() -> None:
    one, other = Norm(act=nn.ReLU()), Norm(act=nn.ReLU())
    nn.init.zeros_(other.weight)
    other.register_forward_hook(lambda module, args, out: out)
    assert likeness(one) is not None
    assert likeness(one) == likeness(other)
    assert hash(likeness(one)) == hash(likeness(other))


def shape(module: Norm) -> None:
    module.weight = nn.Parameter(torch.ones(5))


def dtype(module: Norm) -> None:
    module.weight = nn.Parameter(torch.ones(4, dtype=torch.float64))


def bias(module: Norm) -> None:
    module.bias = nn.Parameter(torch.ones(4))


def eps(module: Norm) -> None:
    module.eps = 1e-5


def kind_of_number(module: Norm) -> None:
    module.width = 4.0


def part(module: Norm) -> None:
    module.act = nn.GELU()


def inside(module: Norm) -> None:
    module.act.inplace = True


def training(module: Norm) -> None:
    module.eval()


def subclass(module: Norm) -> None:
    module.__class__ = type("Other", (Norm,), {"forward": lambda self, x: x})


@pytest.mark.parametrize(
    "change", [shape, dtype, bias, eps, kind_of_number, part, inside, training, subclass]
)
def test_what_could_change_the_function_does(change: Callable[[Norm], None]) -> None:
    one = Norm(act=nn.ReLU())
    other = copy.deepcopy(one)
    assert likeness(one) == likeness(other)
    change(other)
    assert likeness(one) != likeness(other)


def test_nothing_is_said_of_what_is_no_plain_value() -> None:
    held = Norm()
    held.scale = torch.ones(4)
    buffered = Norm()
    buffered.register_buffer("table", torch.ones(4))
    within = Norm(act=nn.BatchNorm1d(4))
    called = Norm()
    called.act = torch.relu
    around = nn.Sequential(Norm())
    for module in (held, buffered, within, called, around):
        assert likeness(module) is None


def test_a_size_of_a_traced_model_is_not_compared() -> None:
    one, other, readings = Norm(), Norm(), Readings()
    one.width = Size(4, readings, Origin("", "width"))
    assert likeness(one) == likeness(other)
    assert not readings.calculated
    assert not readings.found
