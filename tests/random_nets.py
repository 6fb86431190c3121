"""Networks drawn at random: chains, branches, concats, splits, groups, norms, gates, attention."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Attention, _randomise, image


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
        self.head = self._add(nn.Linear(widths[-1], 2))
        self.flat = draw.random() < 0.3 and self._add(nn.Linear(widths[-1] * 16, 2))

    def _add(self, layer: nn.Module) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def _step(self, widths: list[int]) -> int:
        draw, src = self.draw, self.draw.randrange(len(widths))
        width = widths[src]
        same = [i for i, w in enumerate(widths) if w == width and i != src]
        kinds = ["conv", "conv", "conv", "norm", "act", "depthwise", "cat", "gate", "attention"]
        kinds += ["add", "add", "mul"] if same else []
        kinds += ["grouped", "split", "glu"] if width % 2 == 0 else []
        kinds += ["shuffle"] if width % 2 == 0 and width > 2 else []  # (2, 1) could be (c, 1)
        kind = draw.choice(kinds)
        out, layer, other = width, None, draw.choice(same) if same else None
        if kind == "conv":
            out = draw.choice([4, 6, 8])
            layer = self._add(nn.Conv2d(width, out, draw.choice([1, 3]), padding="same"))
        elif kind == "grouped":
            out = draw.choice([4, 6, 8])
            layer = self._add(nn.Conv2d(width, out, 3, padding=1, groups=2))
        elif kind == "depthwise":
            out = width * draw.choice([1, 1, 2])
            layer = self._add(nn.Conv2d(width, out, 3, padding=1, groups=width))
        elif kind == "norm":
            norms = [
                nn.BatchNorm2d(width),
                nn.BatchNorm2d(width, affine=False),
                nn.GroupNorm(1, width),
                nn.GroupNorm(2 if width % 2 == 0 else 1, width),
                nn.GroupNorm(width, width),
                nn.InstanceNorm2d(width),
            ]
            layer = self._add(draw.choice(norms))
            _randomise(self.layers[layer])
        elif kind == "gate":
            layer = self._add(nn.Conv2d(width, width, 1))
        elif kind == "attention":
            layer = self._add(Attention(width, 4, draw.choice([2, 4]), 2, draw.random() < 0.5))
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
        y = self.layers[self.head](values[-1].mean((2, 3)))
        return y + self.layers[self.flat](values[-1].flatten(1)) if self.flat else y

    def _run(self, kind: str, x: Tensor, other: Tensor, layer: Any, act: str) -> Tensor:
        b, c, h, w = x.shape
        if kind in ("conv", "grouped", "depthwise", "norm"):
            return self.layers[layer](x)
        if kind == "act":
            return getattr(F, act)(x)
        if kind == "cat":
            return torch.cat([x, other], 1)
        if kind == "add":
            return x + other
        if kind == "mul":
            return x * other
        if kind == "gate":
            return x * torch.sigmoid(self.layers[layer](x.mean((2, 3), keepdim=True)))
        if kind == "attention":
            y = self.layers[layer](x.flatten(2).transpose(1, 2))
            return y.transpose(1, 2).reshape(b, -1, h, w)
        if kind == "shuffle":
            return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        if kind == "split":
            first, second = x.chunk(2, 1)
            return first - second
        return F.glu(x, 1)
