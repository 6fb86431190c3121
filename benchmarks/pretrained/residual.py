"""Release by what the others cannot replace: an ablation, not in the library.

A tournament releases, of more than it needs, the structures whose decay has cost the most work.
With the moments that a compensation reads, something else is known of them: how much the outputs
of the layers that read them would gain if one came back, all that stay having replaced it as well
as they can. Of the residual covariance ``R = C_LL - C_LK C_KK^-1 C_KL`` of the inputs ``L`` that
leave given those that stay, the structure of input ``i`` gives back ``|W_L R_i|^2 / R_ii`` of the
squared error ``tr(W_L R W_L^T)``: one step of forward selection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

import decayprune as dp
from decayprune.app.pretrained.arms import Arm, Start, Subject, prune
from decayprune.compensation.calibration import Calibration
from decayprune.compensation.moments import Moments
from decayprune.compensation.ridge import stand_in
from decayprune.method.lifecycle import ACTIVE, DECAYING
from decayprune.method.rectify import Leaving, Statistics, Tournament
from decayprune.selection.target import rank_within
from decayprune.structures import edits

Order = Literal["work", "residual", "both", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)


def residual(moments: Moments, staying: Tensor, leaving: Tensor) -> Tensor:
    """Covariance of the inputs that leave that those that stay do not explain, ``(L, L)``."""
    fit = stand_in(moments, staying, leaving, offset=True)
    all_of = moments.covariance.double()
    return all_of[leaving][:, leaving] - fit.weights @ all_of[staying][:, leaving]


def given_back(columns: Tensor, unexplained: Tensor) -> Tensor:
    """Share of the error of a layer's outputs that goes if one input comes back, ``(L,)``.

    Args:
        columns: ``W_L``, shape ``(outputs, L)``.
        unexplained: :func:`residual`.
    """
    error = columns @ unexplained
    gains = error.square().sum(0) / unexplained.diagonal().clamp(min=1e-30)
    return gains / (error * columns).sum().clamp(min=1e-30)


def gains(pruner: dp.DecayPruner, read: Calibration) -> Tensor:
    """What each structure that leaves would give back to its readers, ``(S,)``; else 0."""
    leaves = pruner.lifecycle.committed
    total = torch.zeros(pruner.structures.num_structures, dtype=torch.float64)
    for reader in read.readers:
        gone = (reader.structure >= 0) & leaves[reader.structure.clamp(min=0)]
        leaving, staying = gone.nonzero().flatten(), (~gone).nonzero().flatten()
        if not (leaving.numel() and staying.numel()):
            continue
        weight = reader.layer.weight.detach().double()[:, leaving]
        columns = weight.flatten(2).movedim(1, -1).flatten(0, -2) if weight.dim() > 2 else weight
        found = given_back(columns, residual(read.moments[reader.name], staying, leaving))
        total.index_add_(0, reader.structure[leaving], found)
    return total


@dataclass(frozen=True, kw_only=True)
class OrderedRelease(dp.Rectify):
    """A tournament that orders those it judges otherwise.

    Attributes:
        order: By what.
        seed: Of draws.
        gains: Of the structures that decay now, in the order of their numbers.
    """

    order: Order
    seed: int
    gains: Callable[[], Tensor]

    @property
    def verdict(self) -> Tournament:
        """The tournament in that order."""
        return _Ordered(self.extra, self.judge_at, self.order, self.seed, self.gains)


@dataclass(frozen=True)
class _Ordered(Tournament):
    order: Order
    seed: int
    gains: Callable[[], Tensor]

    def leaving(
        self,
        statistics: Statistics,
        progress: Tensor,
        last_progress: Tensor,
        *,
        step: int,
        final: bool,
    ) -> Leaving:
        judged = super().leaving(statistics, progress, last_progress, step=step, final=final).order
        if self.order == "work" or not judged.numel():
            return Leaving(judged, None)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        score = torch.rand(judged.numel(), generator=generator, dtype=torch.float64)
        if self.order != "random":
            one = torch.zeros_like(judged)
            score = -rank_within(-self.gains()[judged], one).double()  # 0 gives back the most
        if self.order == "both":
            score = score - torch.arange(judged.numel())
        return Leaving(judged[score.sort(descending=True, stable=True).indices], None)


class Restored:
    """A pruner that gives a released structure its length back, at once.

    Without that training has to lengthen again what the decay has shortened by then.

    Args:
        pruner: Decays and releases.
    """

    def __init__(self, pruner: dp.DecayPruner) -> None:
        self._pruner = pruner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pruner, name)

    @torch.no_grad()
    def step(self) -> None:
        """The pruner's step, and the lengths of those it has released."""
        before = self._pruner.lifecycle
        self._pruner.step()
        released = (before.phase == DECAYING) & (self._pruner.lifecycle.phase == ACTIVE)
        if bool(released.any()):
            weights = self._pruner._session.decayer.weights
            carriers = weights.carriers(released)
            longer = before.start_length / weights.length(carriers).clamp(min=1e-30)
            edits.scale_(carriers, weights.parameters, torch.where(released, longer, 1.0))


def restored(arm: Arm) -> Arm:
    """The same arm, whose released structures get their length back."""

    def back(start: Start) -> Subject:
        subject = arm(start)
        pruner_on = subject.pruner_on
        assert pruner_on is not None
        subject.pruner_on = lambda optimizer: Restored(pruner_on(optimizer))
        return subject

    return back


def released_by(order: Order, extra: float) -> Arm:
    """Calibrated and decayed; a tournament with so many more than needed ends in that order."""

    def arm(start: Start) -> Subject:
        model = start.dense
        read = [inputs for inputs, _ in start.calibration()]
        made: list[Any] = []

        def of_decaying() -> Tensor:
            pruner: dp.DecayPruner = made[0]
            assert pruner._learned is not None
            return gains(pruner, pruner._learned.calibration)[pruner.lifecycle.phase == DECAYING]

        rectify = OrderedRelease(order=order, seed=start.run.seed, gains=of_decaying, extra=extra)

        def pruner_on(optimizer: torch.optim.Optimizer) -> dp.DecayPruner:
            made.append(prune(start, model, optimizer, rectify=rectify, calibrate=read))
            return made[0]

        return Subject(model, start.run.steps, pruner_on)

    return arm
