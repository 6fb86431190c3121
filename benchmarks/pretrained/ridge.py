"""Ridge compensation: how the inputs that stay of a linear layer stand in for those that leave.

A layer computes ``y = W x + b``. When the inputs ``R`` leave, their part ``W_R x_R`` is replaced by
its best affine prediction from the inputs ``K`` that stay::

    x_R ~ B x_K + m,   B = C_RK (C_KK + ridge * mean(diag C_KK) * I)^-1,   m = mu_R - B mu_K

with means ``mu`` and covariances ``C`` of the inputs on calibration data, so that ``W_K + W_R B``
and ``b + W_R m`` do the work. Only first and second moments are needed: they are streamed, and
added up in float64, in memory of the width squared.

Sources: CORP (arXiv 2602.05243), GRAIL; the importance is that of variance-based pruning (VBP).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments:
    """Running first and second moments of vectors.

    Args:
        width: Their length.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._total = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Take in some vectors, shape ``(n, width)``."""
        vectors = vectors.detach()
        self.count += len(vectors)
        self._total += vectors.sum(0, dtype=torch.float64)
        self._products += vectors.T @ vectors  # of one batch, in its own precision

    @property
    def mean(self) -> Tensor:
        """Shape ``(width,)``."""
        return self._total / self.count

    @property
    def covariance(self) -> Tensor:
        """Shape ``(width, width)``, divided by the count."""
        return self._products / self.count - torch.outer(self.mean, self.mean)

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, never below zero, shape ``(width,)``."""
        return (self._products.diagonal() / self.count - self.mean**2).clamp(min=0)


class StandIn(NamedTuple):
    """How the inputs that stay predict those that leave.

    Attributes:
        weights: ``B``, shape ``(leaving, staying)``, float64.
        offset: ``m``, shape ``(leaving,)``, float64.
    """

    weights: Tensor
    offset: Tensor

    def folded(self, columns: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the columns that stay and the bias gain.

        Args:
            columns: ``W_R``, columns of the inputs that leave, shape ``(outputs, leaving)``.
            share: How much of each is handed over, shape ``(leaving,)``; None: all of it.

        Returns:
            ``W_R B`` of shape ``(outputs, staying)`` and ``W_R m`` of shape ``(outputs,)``.
        """
        handed = columns.to(torch.float64)
        if share is not None:
            handed = handed * share.to(torch.float64)
        return handed @ self.weights, handed @ self.offset


def stand_in(moments: Moments, staying: Tensor, leaving: Tensor, ridge: float = 1e-3) -> StandIn:
    """Fit the inputs that leave from those that stay.

    Args:
        moments: Of the layer's inputs.
        staying: Indices, shape ``(k,)``.
        leaving: Indices, shape ``(r,)``.
        ridge: Penalty, relative to the mean variance of the inputs that stay.
    """
    covariance, mean = moments.covariance, moments.mean
    among = covariance[staying][:, staying]
    among += ridge * among.diagonal().mean().clamp(min=1e-30) * torch.eye(len(staying)).double()
    across = covariance[staying][:, leaving]
    weights = torch.cholesky_solve(across, torch.linalg.cholesky(among)).T
    return StandIn(weights, mean[leaving] - weights @ mean[staying])


def importance(variance: Tensor, weight: Tensor) -> Tensor:
    """How much an input moves the output: its variance times its column's squared norm.

    That is the error in ``y`` if the input is replaced by its mean and nothing else is done.

    Args:
        variance: Of each input, shape ``(inputs,)``.
        weight: ``W``, shape ``(outputs, inputs)``.

    Returns:
        Shape ``(inputs,)``, float64.
    """
    return variance * weight.detach().to(torch.float64).square().sum(0)
