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
        mean: Shape ``(width,)``, float32, on the CPU.
        covariance: Shape ``(width, width)``, float32, on the CPU; divided by the count.
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
        """Mean of ``x x^T``, shape ``(width, width)``, float64."""
        mean = self.mean.double()
        return self.covariance + torch.outer(mean, mean)


class RunningMoments:
    """Adds vectors up where they are, in float32 and in memory of the width squared.

    Sums are of differences from the first batch's mean: sums of squares of large values would
    leave nothing of a small variance.

    Args:
        width: Length of the vectors.
    """

    def __init__(self, width: int) -> None:
        self.count, self._width = 0, width
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None  # shift, of x, of x x^T

    def add(self, vectors: Tensor) -> None:
        """Take in some vectors, shape ``(n, width)``, on the device of the first ones."""
        if not len(vectors):
            return
        vectors = vectors.detach().float()
        if self._sums is None:
            products = vectors.new_zeros(self._width, self._width)
            self._sums = vectors.mean(0), vectors.new_zeros(self._width), products
        shift, total, products = self._sums
        vectors = vectors.to(shift.device) - shift
        self.count += len(vectors)
        total += vectors.sum(0)
        products.addmm_(vectors.T, vectors)

    def result(self) -> Moments:
        """Moments of all that was added; zeros if nothing was. Nothing can be added after it."""
        width = self._width
        if self._sums is None:
            nothing = torch.zeros(width, width, device="cpu")
            return Moments(0, nothing.diagonal().clone(), nothing)
        shift, total, products = (part.cpu() for part in self._sums)
        off = total / self.count
        self._sums = None  # the products become the covariance in their own memory
        return Moments(self.count, shift + off, products.div_(self.count).addr_(off, off, alpha=-1))


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
