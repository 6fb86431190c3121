"""The learning rates of ticks and tocks, and those that the loop gets back afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decayprune.hosts.gate_decorator.ticks import Phase, triangle


class TickRates:
    """Sets learning rates before each step.

    Args:
        optimizers: Whose.
        tick: Rate in a tick; None leaves the optimizer's own.
        tock: Lowest and highest rate of a tock; None leaves the optimizer's own.

    Attributes:
        own: The optimizers' own rates, by optimizer and parameter group; None before any step.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        tick: float | None,
        tock: tuple[float, float] | None,
    ) -> None:
        self._optimizers, self._tick, self._tock = list(optimizers), tick, tock
        self.own: list[list[float]] | None = None

    def set(self, optimizer: torch.optim.Optimizer, phase: Phase) -> None:
        """The rate of one optimizer for its next step.

        Args:
            optimizer: Which.
            phase: What the step belongs to.
        """
        if self.own is None:
            self.own = [[g["lr"] for g in one.param_groups] for one in self._optimizers]
        rate = self._tick
        if not phase.tick:
            rate = None if self._tock is None else triangle(phase, *self._tock)
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def give_back(self) -> None:
        """Give every optimizer its own rates again."""
        if self.own is None or (self._tick is None and self._tock is None):
            return
        for optimizer, rates in zip(self._optimizers, self.own, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
