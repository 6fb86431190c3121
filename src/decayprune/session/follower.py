"""What a session asks of whoever holds it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn


class Follower(Protocol):
    """Whoever is told of optimizer steps."""

    def _before_step(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        """An optimizer is about to step; ``first`` of several."""

    def _follow(self) -> None:
        """All optimizers have stepped."""

    def _for_trial(self) -> nn.Module:
        """The model as it will be when it is cut."""
