"""Smooth pruning: how long a decaying structure may be at each age.

A schedule maps progress ``p = age / decay_steps`` in [0, 1] to the fraction of the starting norm
that is left: plain functions with ``phi(0) = 1`` and ``phi(1) = 0`` exactly. After every optimizer
step a decaying structure ``w`` is rescaled to ``||w|| = r0 * phi(age / decay_steps)``, whatever the
gradient did to its length; its direction stays free to train.

Source: arXiv 2406.03879 describes the idea; these formulas are our definition (docs/deviations.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Curve = Callable[[Tensor], Tensor]
"""Progress in [0, 1], any shape -> fraction of the starting norm, same shape."""


def linear(progress: Tensor) -> Tensor:
    """``1 - p``: the same length is taken at every step.

    Example:
        >>> linear(torch.tensor([0.0, 0.25, 1.0]))
        tensor([1.0000, 0.7500, 0.0000])
    """
    return 1 - progress


def cosine(progress: Tensor) -> Tensor:
    """``(1 + cos(pi p)) / 2``: slow at both ends.

    Example:
        >>> cosine(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1.0000, 0.5000, 0.0000])
    """
    # cos(pi) in floating point is not exactly -1 on every platform; the end has to be exactly 0.
    return torch.where(progress >= 1, 0.0, (1 + torch.cos(math.pi * progress)) / 2)


CURVES: dict[str, Curve] = {"linear": linear, "cosine": cosine}


def target_length(start: Tensor, age: Tensor, span: Tensor, curve: Curve) -> Tensor:
    """Norm that each structure has to have at its age: ``r0 * phi(age / N)``.

    Args:
        start: Norm when the structure was picked, ``r0``, shape ``(D,)``.
        age: Optimizer steps since then, shape ``(D,)``.
        span: ``N``, the steps that the whole decay lasts, shape ``(D,)``.
        curve: The schedule ``phi``.

    Returns:
        Target norms, shape ``(D,)``; exactly 0 where ``age >= span``.
    """
    progress = (age / span).clamp(max=1).to(start.dtype)
    return torch.where(age >= span, 0.0, start * curve(progress))


def step_factors(age: Tensor, span: Tensor, curve: Curve) -> Tensor:
    """What one step of a decay multiplies a structure with if its norm is *not* held to a schedule.

    ``phi(k / N) / phi((k - 1) / N)``, as HESSO does: whatever the gradient did to the norm stays.

    Args:
        age: Optimizer steps since the pick, this one included, from 1, shape ``(D,)``.
        span: ``N``, shape ``(D,)``.
        curve: The schedule ``phi``.

    Returns:
        Factors, shape ``(D,)``; exactly 0 where ``age >= span``.
    """
    # Ages are whole numbers of at most 2**24, so float64 holds them and their shares to the ulp.
    fine = torch.float32 if age.device.type == "mps" else torch.float64  # MPS has no other
    age = age.to(fine)
    after, before = curve(age / span), curve((age - 1) / span)
    return torch.where(age >= span, 0.0, after / before.clamp(min=torch.finfo(fine).tiny))


def scale_factors(length: Tensor, target: Tensor) -> Tensor:
    """What to multiply each structure with, so that its norm becomes the target.

    Args:
        length: Norm now, shape ``(D,)``.
        target: Norm wanted, shape ``(D,)``.

    Returns:
        Factors, shape ``(D,)``; 0 where the norm is 0 (it stays 0).
    """
    return torch.where(length > 0, target / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
