r"""How the inputs that stay of a layer stand in for those that leave.

The part ``W_R x_R`` of a layer ``y = W x + b`` is replaced by its best prediction from the inputs
``K`` that stay::

    x_R ~ B x_K + m,   B = C_RK (C_KK + ridge * mean(diag C_KK) * I)^-1,   m = mu_R - B mu_K

with means ``mu`` and covariances ``C``, so that ``W_K + W_R B`` and ``b + W_R m`` do the work. A
layer without a bias, or a transposed convolution, has ``m = 0`` and takes the uncentred products
for ``C``.

Source: ridge regression; used this way by CORP (arXiv 2602.05243, section 3) and GRAIL.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from decayprune.compensation.moments import Moments

_RIDGE = 1e-3
_NOTHING = torch.finfo(torch.float32).tiny  # moments are in float32: less is rounding


class StandIn(NamedTuple):
    """How the inputs that stay predict those that leave.

    Attributes:
        weights: ``B``, shape ``(leaving, staying)``, float64.
        offset: ``m``, shape ``(leaving,)``, float64.
    """

    weights: Tensor
    offset: Tensor


def stand_in(
    moments: Moments, staying: Tensor, leaving: Tensor, *, offset: bool, ridge: float = _RIDGE
) -> StandIn:
    """Fit the inputs that leave from those that stay.

    Args:
        moments: Of the layer's inputs.
        staying: Indices, shape ``(k,)``.
        leaving: Indices, shape ``(r,)``.
        offset: Whether the layer has a bias that can take ``m``.
        ridge: Penalty, relative to the mean variance of the inputs that stay.
    """
    second = moments.covariance if offset else moments.products
    among, across = (second[staying][:, part].double() for part in (staying, leaving))
    penalty = ridge * float(among.diagonal().mean().clamp(min=_NOTHING))
    weights = torch.cholesky_solve(across, _factor(among, penalty)).T
    if not offset:
        return StandIn(weights, torch.zeros(len(leaving), dtype=among.dtype, device="cpu"))
    mean = moments.mean.double()
    return StandIn(weights, mean[leaving] - weights @ mean[staying])


def _factor(among: Tensor, penalty: float) -> Tensor:
    """Cholesky factor of a covariance and a penalty on its diagonal, shape ``(k, k)``.

    Sums in float32 leave a rounding that can be more than the penalty, where one variance is a
    thousand times the mean of all: there the penalty is as much larger as it has to be.
    """
    one = torch.eye(len(among), dtype=among.dtype, device="cpu")
    factor: Tensor
    while True:
        factor, failed = torch.linalg.cholesky_ex(among + penalty * one)
        if not int(failed):
            return factor
        penalty *= 10


def folded(fit: StandIn, columns: Tensor) -> tuple[Tensor, Tensor]:
    """What the columns that stay and the bias gain.

    Args:
        fit: The prediction.
        columns: ``W_R``, columns of the inputs that leave, shape ``(outputs, leaving, ...)`` with
            the positions of a convolution's kernel behind.

    Returns:
        ``W_R B`` of shape ``(outputs, staying, ...)`` and ``W_R m``, summed over the kernel, of
        shape ``(outputs,)``.
    """
    wide = columns.to(fit.weights)
    gain = torch.einsum("or...,rk->ok...", wide, fit.weights)
    return gain, torch.einsum("or...,r->o...", wide, fit.offset).reshape(len(columns), -1).sum(1)
