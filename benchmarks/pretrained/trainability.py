"""Trainability preserved while structures decay: a trial, not in the library.

Cutting breaks the near-isometry of a layer that lets what is left train fast. Wang and Fu
(*Trainability Preserving Neural Pruning*, ICLR 2023, Eq. 3 to 5) take the filters that leave out of
the correlations of their layer before they go, by a penalty that grows,

    lambda / 2 * (|W W^T * (1 - m m^T)|_F^2 + gamma_P^2 + beta_P^2),

with ``m`` one for the filters that stay and ``P`` those that leave, in a normaliser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import decayprune as dp
from decayprune.app.pretrained.arms import Arm, Start, Subject
from decayprune.method.lifecycle import DECAYING
from decayprune.structures.sums import labelled

CEILING = 1.0  # of lambda, as published; reached when the decay ends


def decorrelation(rows: Tensor, leaves: Tensor) -> Tensor:
    """Gradient of half the first penalty by the rows of a layer, ``(rows, ...)``.

    Args:
        rows: ``W``, shape ``(rows, ...)``.
        leaves: Which of them do, shape ``(rows,)``.
    """
    flat = rows.flatten(1)
    touched = leaves[:, None] | leaves[None, :]
    return (2 * (flat @ flat.T * touched) @ flat).view_as(rows)


class Decorrelated:
    """A pruner that adds the penalty's gradient while structures decay.

    Args:
        pruner: Decays what it picks in one round, and releases nothing.
        decay_steps: In how many steps.
    """

    def __init__(self, pruner: dp.DecayPruner, decay_steps: int) -> None:
        self._pruner, self._decay_steps, self._seen = pruner, decay_steps, 0
        self._rows = [s for s in labelled(pruner.structures, ("row",)) if s.dim == 0]
        self._affine = labelled(pruner.structures, ("affine",))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pruner, name)

    @torch.no_grad()
    def observe(self) -> None:
        """What the pruner sees is the task's gradient; the penalty comes on top of it."""
        self._pruner.observe()
        strength = CEILING * min(1.0, self._seen / self._decay_steps)
        self._seen += 1
        decays = self._pruner.lifecycle.phase == DECAYING
        if not bool(decays.any()):
            return
        model = self._pruner.model
        for item in (*self._rows, *self._affine):
            leaves = (item.structure >= 0) & decays[item.structure.clamp(min=0)]
            weight = model.get_parameter(item.name)
            if weight.grad is not None and bool(leaves.any()):
                affine = weight.dim() == 1
                pull = weight * leaves if affine else decorrelation(weight, leaves)
                weight.grad.add_(pull, alpha=strength)


def decorrelated(arm: Arm) -> Arm:
    """The same arm, whose structures leave the correlations of their layer while they decay."""

    def apart(start: Start) -> Subject:
        subject = arm(start)
        pruner_on = subject.pruner_on
        assert pruner_on is not None
        window = max(1, start.run.steps // 10)
        subject.pruner_on = lambda optimizer: Decorrelated(pruner_on(optimizer), window)
        return subject

    return apart
