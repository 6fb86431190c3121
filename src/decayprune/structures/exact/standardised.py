"""Weight-standardised convolutions, and what they become when input channels leave them.

Before every call such a layer takes from each of its filters the mean and divides by the standard
deviation (NFNet, BiT). Filters leave freely, for each has a mean and a deviation of its own. Input
channels do not: a filter's statistics go over all of them. So their columns shrink with what
produces them, all others adapt to that step by step, and what becomes of the layer counts the
columns that have left as the zeros they had become. It keeps no values of them, and trains like the
layer with zeros in it would.

Every library writes these layers anew, with the epsilon under the root or beside it, with a gain or
without. Neither class nor name is believed: a small copy with random parameters is run, and a layer
is one if it computes what one computes.

Annotations here are no strings, so that the layers can be scripted.
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from decayprune.structures.exact.normalisers import epsilons
from decayprune.structures.exact.norms import called


def standardised(
    weight: Tensor, counted: int, eps: float, beside: bool = False, correction: int = 0
) -> Tensor:
    """Filters less their means, over their deviations, columns of zeros counted in (Qiao et al.).

    Args:
        weight: Filters, shape ``(out, n, ...)``.
        counted: Columns of the statistics, ``counted >= n``; those that are missing are zeros.
        eps: Added to the variances, or to the deviations.
        beside: Whether to the deviations.
        correction: Taken from the count that the squares are divided by: 1 where the variance is
            that of a sample.

    Reference: Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization, arXiv 1903.10520.
    """
    filters = weight.flatten(1)
    there, count = filters.shape[1], counted * weight[0, 0].numel()
    mean = filters.sum(1, keepdim=True) / count
    centred = filters - mean
    squares = centred.square().sum(1, keepdim=True) + (count - there) * mean.square()
    variance = squares / (count - correction)
    # A filter of zeros stays one, and the root of 0 has no slope.
    spread = variance.clamp_min(1e-30).sqrt() + eps if beside else (variance + eps).sqrt()
    return (centred / spread).view_as(weight)


class _Counting(nn.modules.conv._ConvNd):
    """The forward pass that they share.

    Attributes:
        counted: Columns of a filter's statistics, those that left included.
        eps: Added to the variances, or to the deviations.
        beside: Whether to the deviations.
        correction: As in :func:`standardised`.
        gain: Name of the parameter that scales each filter, None without.
        factor: What all filters are multiplied by.
        same: Whether the input is padded so that strides alone shrink it, as TensorFlow does.
        replaced: Name of the class it was before.
    """

    counted: int
    eps: float
    beside: bool
    correction: int
    gain_name: str | None
    factor: float
    same: bool
    replaced: str
    gain: Tensor | None  # what a compiler calls it

    def forward(self, input: Tensor) -> Tensor:
        """Standardise the filters and convolve."""
        if self.same:
            kernel = list(self.kernel_size)
            input = _same_padded(input, kernel, list(self.stride), list(self.dilation))
        weight = standardised(self.weight, self.counted, self.eps, self.beside, self.correction)
        weight = weight * self.factor
        gain = self._gain()
        if gain is not None:
            weight = weight * gain.view([-1] + [1] * (weight.dim() - 1))
        return self._conv_forward(input, weight, self.bias)

    def _gain(self) -> Tensor | None:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.gain
        else:  # noqa: RET505  (a compiler passes over the other branch alone)
            return getattr(self, self.gain_name) if self.gain_name else None

    def __prepare_scriptable__(self) -> nn.Module:
        return called(self, {"gain": self.gain_name})

    def extra_repr(self) -> str:
        """As its base, and what is counted."""
        own: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{own}, counted={self.counted}"


class CountingConv1d(_Counting, nn.Conv1d):
    """What a weight-standardised :class:`torch.nn.Conv1d` becomes."""


class CountingConv2d(_Counting, nn.Conv2d):
    """What a weight-standardised :class:`torch.nn.Conv2d` becomes."""


class CountingConv3d(_Counting, nn.Conv3d):
    """What a weight-standardised :class:`torch.nn.Conv3d` becomes."""


COUNTING = (CountingConv1d, CountingConv2d, CountingConv3d)


def _same_padded(x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    """Zeros around an input, one more behind than before, so that strides alone shrink it."""
    sides = [0, 0] * 0  # of integers, also for a compiler
    for i in range(len(kernel)):
        size, reach = x.shape[2 + i], dilation[i] * (kernel[i] - 1) + 1
        missing = max((-(-size // stride[i]) - 1) * stride[i] + reach - size, 0)
        sides += [missing - missing // 2, missing // 2]
    return F.pad(x, sides[::-1])  # which counts from the last


# ---------------------------------------------------------------- which layers are some


@dataclass(frozen=True)
class Standardisation:
    """How a layer standardises its weight; the attributes of what it becomes.

    Attributes:
        counted: Columns of its filters.
        eps: Added to the variances, or to the deviations.
        beside: Whether to the deviations.
        correction: As in :func:`standardised`.
        gain_name: Name of the parameter that scales each filter, None without.
        factor: What all filters are multiplied by.
        same: Whether the input is padded as TensorFlow does.
    """

    counted: int
    eps: float
    beside: bool
    correction: int
    gain_name: str | None
    factor: float
    same: bool


def standardisation(module: nn.Module) -> Standardisation | None:
    """How a convolution standardises its weight; None where it does not, or in an unknown way."""
    kind = type(module)
    if isinstance(module, COUNTING):
        names = Standardisation.__dataclass_fields__
        return Standardisation(**{name: getattr(module, name) for name in names})
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return None
    if kind.__module__.startswith("torch.") or kind.forward in _PLAIN:
        return None
    if parametrize.is_parametrized(module) or list(module.children()):
        return None
    own = dict(module.named_parameters(recurse=False))
    gains = [n for n in own if n not in ("weight", "bias")]
    if "weight" not in own or len(gains) > 1:
        return None
    if any(own[n].numel() != module.out_channels for n in gains):
        return None
    small = _small(module, gains)
    sides = [d * k + 3 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    x = _random(small.weight, 2, _IN, *sides)
    large = _run(small, x, 1e3)  # so large that no epsilon is felt
    if large is None or not _close(large, _run(small, x, 2e3)):
        return None
    for like in _candidates(module, gains):
        if _close(large, _run(small, x, 1e3, like)):
            return _with_epsilon(small, x, like, module)
    return None


_PLAIN = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
_OUT, _IN = 4, 3


def _small(module: Any, gains: list[str]) -> Any:
    """A copy with few channels and random parameters: those of a fresh layer may hide something."""
    small: Any = object.__new__(type(module))
    vars(small).update(vars(module))
    weight = module.weight
    shapes = {"weight": (_OUT, _IN, *weight.shape[2:]), "bias": (_OUT,)}
    shapes |= {n: tuple(_OUT if s > 1 else 1 for s in getattr(module, n).shape) for n in gains}
    vars(small)["_parameters"] = {
        name: None if value is None else nn.Parameter(_random(weight, *shapes[name]) + 0.5, False)
        for name, value in module._parameters.items()
    }
    vars(small).update(in_channels=_IN, out_channels=_OUT, groups=1)
    return small


def _candidates(module: Any, gains: list[str]) -> Iterator[Standardisation]:
    """Ways of the small copy; of the factor, what the layer holds, also over the root of fan-in."""
    held = _floats(module)
    root = (_IN * prod(module.kernel_size)) ** -0.5
    factors = dict.fromkeys([1.0, *held, root, *(root * v for v in held)])
    for factor, correction, same in itertools.product(factors, (0, 1), (False, True)):
        yield Standardisation(_IN, 0.0, False, correction, next(iter(gains), None), factor, same)


def _with_epsilon(
    small: Any, x: Tensor, like: Standardisation, module: Any
) -> Standardisation | None:
    """The way of the layer itself, once its epsilon is found."""
    for eps, beside in itertools.product(epsilons(module), (False, True)):
        scale = (eps if beside else eps**0.5) or 1e-8  # so small that it is felt
        found = replace(like, eps=eps, beside=beside)
        y = _run(small, x, scale)
        if y is None or not _close(y, _run(small, x, scale, found)):
            continue
        smaller = module.weight[0].numel() / small.weight[0].numel()
        factor = (
            like.factor if like.factor in (1.0, *_floats(module)) else like.factor * smaller**-0.5
        )
        return replace(found, counted=module.weight.shape[1], factor=factor)
    return None


def _floats(module: nn.Module) -> list[float]:
    return [v for v in vars(module).values() if isinstance(v, float) and v > 0]


def _run(small: Any, x: Tensor, scale: float, way: Standardisation | None = None) -> Tensor | None:
    """What the layer, or one that standardises in some way, makes of its weight times a scale."""
    weight = nn.Parameter(small.weight * scale, False)
    kind = type(small) if way is None else COUNTING[weight.dim() - 3]
    scaled: Any = object.__new__(kind)
    vars(scaled).update(vars(small))
    vars(scaled)["_parameters"] = {**small._parameters, "weight": weight}
    if way is not None:
        vars(scaled).update(vars(way))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = kind.forward(scaled, x.clone())
    except Exception:  # whatever it is, it does not convolve an input like this one
        return None
    return y if isinstance(y, Tensor) else None


def _close(y: Tensor, other: Tensor | None) -> bool:
    if other is None or y.shape != other.shape:
        return False
    return torch.allclose(y, other, 1e-4, 1e-5 * float(y.abs().max()))


def _random(like: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    return torch.randn(*shape, generator=generator, dtype=dtype, device="cpu")
