"""Networks drawn at random: chains, branches, concats, splits, groups, norms, gates, attention.

Some weights are computed (weight norm, spectral norm, standardisation), some layers recurrent.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from cases import Attention, ScaledConv, StandardisedConv, _randomise, image


def random_net(seed: int) -> tuple[nn.Module, Tensor]:
    """The network of a seed, in float64, and its inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**31)
        return RandomNet(random.Random(seed)).double(), image(size=4)


class RandomNet(nn.Module):
    """A program of layers drawn at random; every operation keeps the spatial size."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.program: list[tuple[Any, ...]] = []
        self.draw = draw
        widths = [3]
        for _ in range(draw.randint(2, 9)):
            widths.append(self._step(widths))
        self.last = self._add(nn.Linear(widths[-1], 2))
        self.flattened = draw.random() < 0.3 and self._add(nn.Linear(widths[-1] * 16, 2))

    def _add(self, layer: nn.Module) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def _step(self, widths: list[int]) -> int:
        draw, src = self.draw, self.draw.randrange(len(widths))
        width = widths[src]
        same = [i for i, w in enumerate(widths) if w == width and i != src]
        kinds = ["conv", "conv", "conv", "norm", "act", "depthwise", "cat", "gate", "attention"]
        kinds += ["computed", "standardised", "recurrent"]
        kinds += ["add", "add", "mul"] if same else []
        kinds += ["grouped", "split", "glu"] if width % 2 == 0 else []
        kinds += ["shuffle"] if width % 2 == 0 and width > 2 else []  # (2, 1) could be (c, 1)
        kind = draw.choice(kinds)
        out, layer, other = width, None, draw.choice(same) if same else None
        if kind in MADE:
            made, out = MADE[kind](draw, width)
            layer = self._add(made)
        elif kind == "cat":
            other = draw.randrange(len(widths))
            out = width + widths[other]
        elif kind in ("split", "glu"):
            out = width // 2
        act = draw.choice(["relu", "silu", "sigmoid", "tanh", "leaky_relu", "hardswish"])
        self.program.append((kind, src, other, layer, act))
        return out

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, src, other, layer, act in self.program:
            values.append(self._run(kind, values[src], values[other or 0], layer, act))
        y = self.layers[self.last](values[-1].mean((2, 3)))
        return y + self.layers[self.flattened](values[-1].flatten(1)) if self.flattened else y

    def _run(self, kind: str, x: Tensor, other: Tensor, layer: Any, act: str) -> Tensor:
        b, c, h, w = x.shape
        if kind in ("gate", "attention", "recurrent"):
            return self._over_places(kind, x, self.layers[layer])
        if kind in MADE:
            return self.layers[layer](x)
        if kind == "act":
            return getattr(F, act)(x)
        if kind == "cat":
            return torch.cat([x, other], 1)
        if kind == "add":
            return x + other
        if kind == "mul":
            return x * other
        if kind == "shuffle":
            return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        if kind == "split":
            first, second = x.chunk(2, 1)
            return first - second
        return F.glu(x, 1)

    @staticmethod
    def _over_places(kind: str, x: Tensor, layer: nn.Module) -> Tensor:
        if kind == "gate":
            return x * torch.sigmoid(layer(x.mean((2, 3), keepdim=True)))
        y = layer(x.flatten(2).transpose(1, 2))
        y = y[0] if kind == "recurrent" else y
        return y.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


# ---- layers: of a width, and how many channels they make of it -------------------------------

Made = tuple[nn.Module, int]


def conv(draw: random.Random, width: int) -> Made:
    out = draw.choice([4, 6, 8])
    return nn.Conv2d(width, out, draw.choice([1, 3]), padding="same"), out


def grouped(draw: random.Random, width: int) -> Made:
    out = draw.choice([4, 6, 8])
    return nn.Conv2d(width, out, 3, padding=1, groups=2), out


def depthwise(draw: random.Random, width: int) -> Made:
    out = width * draw.choice([1, 1, 2])
    return nn.Conv2d(width, out, 3, padding=1, groups=width), out


def computed(draw: random.Random, width: int) -> Made:
    layer, out = conv(draw, width)
    return draw.choice([weight_norm, spectral_norm])(layer), out


def standardised(draw: random.Random, width: int) -> Made:
    out, groups = draw.choice([4, 6, 8]), draw.choice([1, 1, 2])
    kind = draw.choice([ScaledConv, ScaledConv, StandardisedConv])
    return kind(width, out, 3, padding=1, groups=1 if width % groups else groups), out


def recurrent(draw: random.Random, width: int) -> Made:
    kind, out = draw.choice([nn.LSTM, nn.GRU, nn.RNN]), draw.choice([4, 6, 8])
    ways, depth = draw.choice([1, 2]), draw.choice([1, 2])
    return kind(width, out // ways, depth, batch_first=True, bidirectional=ways == 2), out


def norm(draw: random.Random, width: int) -> Made:
    norms = [
        nn.BatchNorm2d(width),
        nn.BatchNorm2d(width, affine=False),
        nn.GroupNorm(1, width),
        nn.GroupNorm(2 if width % 2 == 0 else 1, width),
        nn.GroupNorm(width, width),
        nn.InstanceNorm2d(width),
    ]
    chosen = draw.choice(norms)
    _randomise(chosen)
    return chosen, width


def attention(draw: random.Random, width: int) -> Made:
    return Attention(width, 4, draw.choice([2, 4]), 2, draw.random() < 0.5), width


def gate(draw: random.Random, width: int) -> Made:
    return nn.Conv2d(width, width, 1), width


MADE: dict[str, Callable[[random.Random, int], Made]] = {
    made.__name__: made
    for made in (conv, grouped, depthwise, computed, standardised, recurrent, norm, attention, gate)
}
