"""OTOv2 by itself: its optimizer trains and prunes, in the place of AdamW."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import decayprune as dp
from decayprune.app.pretrained.arms import Arm, Start, Subject
from decayprune.app.pretrained.loop import WEIGHT_DECAY
from decayprune.hosts.otov2.dhspg import DHSPG

SPLIT, CAUGHT = 0.1, 0.5
"""Shares of the steps after which it splits structures in two, and by which the budget is met."""

LENGTH = 20
"""Its penalty is made for a hundred epochs; here it takes so long a length off in the steps that
there are, at half of the peak rate, as the command has it."""


@dataclass
class ByItself:
    """An optimizer that prunes, where a pruner beside it is expected."""

    optimizer: DHSPG

    @property
    def finished(self) -> bool:
        """As the optimizer's."""
        return self.optimizer.finished

    def observe(self) -> None:
        """The optimizer sees gradients by itself."""

    def step(self) -> None:
        """The optimizer has done its step."""

    def compact(self) -> dp.CompactionReport:
        """As the optimizer's."""
        return self.optimizer.compact()


def otov2(divisible: int = 1) -> Arm:
    """DHSPG on AdamW, projecting at once as published; widths stay multiples of a number."""

    def arm(start: Start) -> Subject:
        model, steps = start.dense, start.run.steps
        split, stop = max(1, round(SPLIT * steps)), max(2, round(CAUGHT * steps))

        def optimizer_on(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
            return DHSPG(
                model,
                start.task.example(),
                lr,
                variant="adamw",
                weight_decay=WEIGHT_DECAY,
                lmbda=max(1e-2, LENGTH / (lr * (stop - split))),
                tolerance_group_sparsity=0.0,
                group_divisible=divisible,
                start_step=split,
                stop_step=stop,
                budget=dp.Budget(macs=start.run.budget),
                ignored_layers=start.task.ignored,
                params=parameters,
            )

        return Subject(model, steps, _by_itself, optimizer_on=optimizer_on)

    return arm


def _by_itself(optimizer: torch.optim.Optimizer) -> ByItself:
    assert isinstance(optimizer, DHSPG)
    return ByItself(optimizer)
