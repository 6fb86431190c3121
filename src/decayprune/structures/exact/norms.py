"""Normalisers that count channels which have left the model.

A layer norm (or a group norm with several channels to a group) computes one mean and one variance
over many channels, so removing channels changes it for all the others, even where the removed ones
were exact zeros. The normalisers here remember how many channels there were and count the missing
ones as the zeros they had become: what they compute for the channels that are left is, up to
rounding, what the full normaliser computed. They are ordinary modules: same parameters under the
same names, saved, loaded, exported and trained like any other.

The zeros are really put there, for torch's own kernel: it reads the activation once and is faster
than a mean and a variance of our own, and exporters know a padding and a normaliser.
"""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic


def counting_layer_norm(
    x: Tensor, counted: int, weight: Tensor | None, bias: Tensor | None, eps: float, dim: int = -1
) -> Tensor:
    """Layer norm over ``x`` and as many zeros as are missing from ``counted`` channels (ours).

    Args:
        x: Activations with ``n`` channels along ``dim``.
        counted: Channels of the mean and the variance, ``counted >= n``.
        weight: Scale per channel, ``n`` elements, or None.
        bias: Shift per channel, ``n`` elements, or None.
        eps: Added to the variance.
        dim: Dimension of the channels; each place along the others has its own mean.
    """
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(
            counting_layer_norm, (x, weight, bias), x, counted, weight, bias, eps, dim
        )
    x = x.movedim(dim, -1)
    there = x.shape[-1]
    x = _padded(x, 1, counted, -1)
    weight, bias = (
        value if value is None else _padded(value.flatten(), 1, counted, 0)
        for value in (weight, bias)
    )
    y = F.layer_norm(x, (counted,), weight, bias, eps)
    return y[..., :there].movedim(-1, dim)


def counting_rms_norm(
    x: Tensor,
    counted: int,
    weight: Tensor | None,
    eps: float | None,
    dim: int = -1,
    offset: float = 0.0,
) -> Tensor:
    """RMS norm over ``x`` and as many zeros as are missing from ``counted`` channels (ours).

    Args:
        x: Activations with ``n`` channels along ``dim``.
        counted: Channels of the mean square, ``counted >= n``.
        weight: Scale per channel, ``n`` elements, or None.
        eps: Added to the mean square; None: the smallest of the dtype.
        dim: Dimension of the channels; each place along the others has its own mean square.
        offset: Added to the weight.
    """
    if has_torch_function_variadic(x, weight):
        return handle_torch_function(
            counting_rms_norm, (x, weight), x, counted, weight, eps, dim, offset
        )
    # Wanted: x / sqrt(sum(x ** 2) / counted + eps). The fused kernel divides by the n that are
    # there: sum / counted + eps = (sum / n + eps * counted / n) * n / counted.
    x = x.movedim(dim, -1)
    times = counted / x.shape[-1]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    if weight is not None:
        weight = weight.flatten() + offset if offset else weight.flatten()
    y = F.rms_norm(x, (x.shape[-1],), weight, eps * times)
    return y.mul(times**0.5).movedim(-1, dim)


def counting_group_norm(
    x: Tensor, groups: int, counted: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Group norm over ``x`` and as many zeros as are missing from ``counted`` channels (ours).

    Args:
        x: Activations, shape ``(batch, n, ...)``; every group lacks as many channels.
        groups: Groups the channels are divided into.
        counted: Channels of all groups together, ``counted >= n``.
        weight: Scale per channel, shape ``(n,)``, or None.
        bias: Shift per channel, shape ``(n,)``, or None.
        eps: Added to the variances.
    """
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(
            counting_group_norm, (x, weight, bias), x, groups, counted, weight, bias, eps
        )
    there, shape = x.shape[1] // groups, x.shape
    x = _padded(x, groups, counted, 1)
    weight, bias = (_padded(value, groups, counted, 0) for value in (weight, bias))
    y = F.group_norm(x, groups, weight, bias, eps)
    y = y.reshape(shape[0], groups, counted // groups, *shape[2:])
    return y[:, :, :there].reshape(shape)


@overload
def _padded(value: Tensor, groups: int, counted: int, dim: int) -> Tensor: ...
@overload
def _padded(value: Tensor | None, groups: int, counted: int, dim: int) -> Tensor | None: ...
def _padded(value: Tensor | None, groups: int, counted: int, dim: int) -> Tensor | None:
    """Zeros behind the channels of every group, until there are ``counted`` of them."""
    if value is None:
        return None
    dim %= value.dim()
    before, there, behind = value.shape[:dim], value.shape[dim], value.shape[dim + 1 :]
    grouped = value.reshape(*before, groups, there // groups, *behind)
    missing = (counted - there) // groups
    padded = F.pad(grouped, (0, 0) * len(behind) + (0, missing))  # counts dims from the last
    return padded.reshape(*before, counted, *behind)


class CountingLayerNorm(nn.LayerNorm):
    """What a :class:`torch.nn.LayerNorm`, or a module that computes the same, becomes.

    Attributes:
        counted: Channels it computes mean and variance over, those that left included.
        channels_first: Whether the channels lie along dimension 1 instead of the last.
        affine: Names of the parameters that scale and shift each channel, None without.
        replaced: Name of the class it was before.
    """

    counted: int
    channels_first: bool
    affine: tuple[str | None, str | None]
    replaced: str

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; channels along the last dimension, or the second one."""
        weight, bias = (getattr(self, name) if name else None for name in self.affine)
        dim = 1 if self.channels_first else -1
        return counting_layer_norm(input, self.counted, weight, bias, self.eps, dim)

    def extra_repr(self) -> str:
        """Width, epsilon, and what is counted."""
        return f"{tuple(self.normalized_shape)}, eps={self.eps}, counted={self.counted}"


class CountingGroupNorm(nn.GroupNorm):
    """What a :class:`torch.nn.GroupNorm` becomes when channels leave it, as many in every group.

    Attributes:
        counted: Channels of all groups together, those that left included.
        replaced: Name of the class it was before.
    """

    counted: int
    replaced: str

    def forward(self, input: Tensor) -> Tensor:
        """Normalise activations of shape ``(batch, channels, ...)``."""
        return counting_group_norm(
            input, self.num_groups, self.counted, self.weight, self.bias, self.eps
        )

    def extra_repr(self) -> str:
        """As its base, and what is counted."""
        return f"{super().extra_repr()}, counted={self.counted}"


class CountingRMSNorm(nn.RMSNorm):
    """What a :class:`torch.nn.RMSNorm`, or a module that computes the same, becomes.

    Attributes:
        counted: Channels it takes the mean square over, those that left included.
        channels_first: Whether the channels lie along dimension 1 instead of the last.
        affine: Name of the parameter that scales each channel, None without; and None.
        offset: Added to the scale (Gemma: 1).
        replaced: Name of the class it was before.
    """

    counted: int
    channels_first: bool
    affine: tuple[str | None, str | None]
    offset: float
    replaced: str

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; channels along the last dimension, or the second one."""
        name, dim = self.affine[0], 1 if self.channels_first else -1
        weight = getattr(self, name) if name else None
        return counting_rms_norm(x, self.counted, weight, self.eps, dim, self.offset)

    def extra_repr(self) -> str:
        """Width, epsilon, and what is counted."""
        return f"{tuple(self.normalized_shape)}, eps={self.eps}, counted={self.counted}"
