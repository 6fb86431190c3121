"""First and second moments of what a layer reads, added up batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of vectors.

    Attributes:
        count: How many vectors were seen.
        mean: Shape ``(width,)``, float64, on the CPU.
        covariance: Shape ``(width, width)``, float64, on the CPU; divided by the count.
    """

    count: int
    mean: Tensor
    covariance: Tensor

    @property
    def variance(self) -> Tensor:
        """Of each entry, shape ``(width,)``."""
        return self.covariance.diagonal().clamp(min=0)

    @property
    def products(self) -> Tensor:
        """Mean of ``x x^T``, shape ``(width, width)``."""
        return self.covariance + torch.outer(self.mean, self.mean)


class RunningMoments:
    """Adds vectors up, in memory of the width squared.

    Sums are of differences from the first batch's mean: sums of squares of large values would
    leave nothing of a small variance.

    Args:
        width: Length of the vectors.
    """

    def __init__(self, width: int) -> None:
        self.count, self._width = 0, width
        self._shift: Tensor | None = None
        self._total = torch.zeros(width, dtype=torch.float64, device="cpu")
        self._products = torch.zeros(width, width, dtype=torch.float64, device="cpu")

    def add(self, vectors: Tensor) -> None:
        """Take in some vectors, shape ``(n, width)``; products of a batch are made in float32."""
        if not len(vectors):
            return
        vectors = vectors.detach().float()
        if self._shift is None:
            self._shift = vectors.mean(0)
        vectors = vectors - self._shift
        self.count += len(vectors)
        self._total += vectors.sum(0).cpu()
        self._products += (vectors.T @ vectors).cpu()

    def result(self) -> Moments:
        """Moments of all that was added; zeros if nothing was."""
        count = max(self.count, 1)
        off = self._total / count
        shift = torch.zeros_like(off) if self._shift is None else self._shift.cpu().double()
        covariance = self._products / count - torch.outer(off, off)
        return Moments(self.count, shift + off, covariance)


def pooled(parts: Sequence[Moments]) -> Moments:
    """Moments of what several have seen, each its own.

    Args:
        parts: At least one; their order decides the last digits.
    """
    count = sum(part.count for part in parts)
    weight = [part.count / max(count, 1) for part in parts]
    mean = sum((w * p.mean for w, p in zip(weight, parts, strict=True)), parts[0].mean * 0)
    covariance = torch.zeros_like(parts[0].covariance)
    for share, part in zip(weight, parts, strict=True):
        off = part.mean - mean
        covariance += share * (part.covariance + torch.outer(off, off))
    return Moments(count, mean, covariance)
