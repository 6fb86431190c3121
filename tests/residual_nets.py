"""Small networks of residual branches, for the tests of depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import decayprune as dp

INPUTS = torch.zeros(2, 8)


class Block(nn.Module):
    """A branch before whose end its forward() computes by itself."""

    def __init__(
        self, width: int, inner: int | None = None, act: Callable[[Tensor], Tensor] = F.gelu
    ) -> None:
        super().__init__()
        inner = 2 * width if inner is None else inner
        self.norm, self.act = nn.LayerNorm(width), act
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Stack(nn.Module):
    """Blocks between a stem and a head, for vectors of eight."""

    def __init__(self, blocks: int = 6, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def stack(seed: int = 0, **options: int) -> Stack:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Stack(**options)


def train(model: nn.Module, optimizer: Any, pruner: Any, steps: int, first: int = 0) -> None:
    """The plain loop; the batch of a step is always the same."""
    for step in range(first, first + steps):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        F.cross_entropy(model(x), x[:, :4].argmax(1)).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()


def pruner_of(model: nn.Module, optimizer: Any, **options: Any) -> dp.DecayPruner:
    """A pruner of half of the branches, which decay over four steps."""
    given = {
        "budget": dp.Budget(depth=0.5),
        "schedule": dp.Schedule(start=0, stop=4, decay_steps=4),
        "round_to": None,
        **options,
    }
    return dp.DecayPruner(model, optimizer, INPUTS, **given)


def randomised(model: nn.Module) -> nn.Module:
    """In float64, with normalisers that hide nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.double().modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, generator=generator)
    return model


class FusedEncoder(nn.Module):
    """Torch's own encoder, which in evaluation mode computes past its modules."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def _resnet(block: Any, layers: list[int]) -> tuple[nn.Module, Tensor]:
    return ResNet(block, layers, num_classes=5), torch.randn(2, 3, 32, 32)


def _vit() -> tuple[nn.Module, Tensor]:
    model = VisionTransformer(16, 8, 3, 2, 12, 24, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model, torch.randn(2, 3, 16, 16)


NETS = {
    "basic": lambda: _resnet(BasicBlock, [2, 2, 1, 1]),
    "bottleneck": lambda: _resnet(Bottleneck, [2, 1, 2, 1]),
    "vit": _vit,
    "encoder": lambda: (FusedEncoder(), torch.randn(2, 5, 16)),
    "stack": lambda: (Stack(), torch.randn(2, 8)),
}
"""Each with inputs, seeded; branches that can be removed: :data:`BRANCHES`."""

BRANCHES = {"basic": 3, "bottleneck": 2, "vit": 6, "encoder": 4, "stack": 6}


def residual_net(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = NETS[name]()
        return randomised(model), inputs.double()
