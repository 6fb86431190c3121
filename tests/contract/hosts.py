"""One builder per host: the same small problem for all of them, pruned to 60 % of its MACs.

A host joins the contract by adding one function to :data:`HOSTS`. It gets a model, the length of a
decay and the release rule, and returns a :class:`Setup`; everything else is the suite's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from decayprune import Budget, Rectify
from decayprune.hosts import DHSPG, HESSO, GateDecorator, TickTock, TorchPruningHost
from decayprune.method.lifecycle import LifecycleState
from decayprune.structures.structure_map import Role

MACS = 0.6
STEPS = 160  # every host has finished by then


class Net(nn.Module):
    """A stem, two residual blocks, one of them with a shortcut of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a1, self.a2 = conv(8, 12), conv(12, 8)
        self.b1, self.b2, self.short = conv(8, 12), conv(12, 16), conv(8, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a2(F.relu(self.a1(x))))
        x = F.relu(self.short(x) + self.b2(F.relu(self.b1(x))))
        return self.head(x.mean((2, 3)))


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def network() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 8, 8, generator=generator)
    return x, x.mean((2, 3)).argmax(1)


@dataclass
class Setup:
    """What a builder returns; a host that is an optimizer stands in both places."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    host: Any
    zeroed: Collection[Role] = ("row", "affine", "column")  # what a pruned structure leaves at zero

    def step(self) -> None:
        """What follows the optimizer's step."""
        if self.host is not self.optimizer:
            self.host.step()

    @property
    def lifecycle(self) -> LifecycleState:
        state: LifecycleState = self.host.lifecycle
        return state


Build = Callable[[nn.Module, int, Rectify | None], Setup]


def torch_pruning(model: nn.Module, decay_steps: int, rectify: Rectify | None) -> Setup:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    pruner = tp.pruner.MetaPruner(
        model,
        batch(0)[0],
        tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=60,
        ignored_layers=[model.head],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    model.train()  # building the pruner has left it in evaluation mode
    host = TorchPruningHost(
        pruner,
        optimizer,
        batch(0)[0],
        budget=Budget(macs=MACS),
        start=3,
        decay_steps=decay_steps,
        rectify=rectify,
    )
    return Setup(model, optimizer, host)


def gate_decorator(model: nn.Module, decay_steps: int, rectify: Rectify | None) -> Setup:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    host = GateDecorator(
        model,
        optimizer,
        batch(0)[0],
        budget=Budget(macs=MACS),
        schedule=TickTock(tick_steps=2, tock_steps=2, ticks=3, share=0.06),
        decay_steps=decay_steps,
        rectify=rectify,
    )
    return Setup(model, optimizer, host)


def dhspg(model: nn.Module, decay_steps: int, rectify: Rectify | None) -> Setup:
    host = DHSPG(
        model,
        batch(0)[0],
        0.02,
        momentum=0.9,
        lmbda=2.0,
        epsilon=0.95,
        start_step=3,
        stop_step=60,
        budget=Budget(macs=MACS),
        decay_steps=decay_steps,
        rectify=rectify,
    )
    return Setup(model, host, host, zeroed=("row", "affine"))


def hesso(model: nn.Module, decay_steps: int, rectify: Rectify | None) -> Setup:
    host = HESSO(
        model,
        batch(0)[0],
        0.02,
        momentum=0.9,
        start_step=3,
        pruning_steps=40,
        pruning_periods=4,
        budget=Budget(macs=MACS),
        decay_steps=decay_steps if decay_steps > 1 else None,  # smooth as published
        rectify=rectify,
    )
    return Setup(model, host, host, zeroed=("row", "affine"))


HOSTS: dict[str, Build] = {
    "dhspg": dhspg,
    "hesso": hesso,
    "depgraph": torch_pruning,
    "gate-decorator": gate_decorator,
}

VARIANTS: dict[str, tuple[int, Rectify | None]] = {
    "alone": (1, None),
    "SP": (8, None),
    "SP+SR": (8, Rectify(rule="thresholds", t_rate=-0.9, t_len=-1e9, warm_up=0.25, cool_down=1)),
    "SP+SR tournament": (8, Rectify(rule="tournament", extra=0.3)),
}
