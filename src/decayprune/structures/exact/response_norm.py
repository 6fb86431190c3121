"""Global response normalisation (ConvNeXt V2), and what it becomes when channels leave it.

It divides how strongly each channel responds, its norm over all positions, by the mean over the
channels, and adds what it makes of the input to the input. A channel of zeros has no response, and
stays one once its shift has gone: so what becomes of the layer takes its mean over the channels
that there were. As other normalisers it is known by what it computes, whoever wrote it.

Annotations here are no strings, so that the layer can be scripted.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from decayprune.structures.exact.normalisers import (
    close,
    epsilons,
    noise,
    randomised,
    run_on,
    width_of,
)
from decayprune.structures.exact.norms import called


def counting_response_norm(
    x: Tensor,
    counted: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    channels_first: bool = False,
) -> Tensor:
    """``x + weight * x * g / (sum(g) / counted + eps) + bias``, ``g`` the norms of channels.

    Args:
        x: Activations, shape ``(batch, height, width, n)``, or ``(batch, n, height, width)``.
        counted: Channels of the mean, ``counted >= n``; those that are missing are zeros.
        weight: Of each channel, ``n`` elements.
        bias: Of each channel, ``n`` elements.
        eps: Added to the mean.
        channels_first: Whether the channels lie along dimension 1.

    Reference: Woo et al., ConvNeXt V2, arXiv 2301.00808, algorithm 1; the counted mean is ours.
    """
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(
            counting_response_norm, (x, weight, bias), x, counted, weight, bias, eps, channels_first
        )
    places, channels = ([2, 3], 1) if channels_first else ([1, 2], 3)
    shape = [1, -1, 1, 1] if channels_first else [1, 1, 1, -1]
    response: Tensor = torch.linalg.vector_norm(x, 2, places, keepdim=True)
    mean = response.sum(channels, keepdim=True) / counted
    return x + weight.view(shape) * (x * (response / (mean + eps))) + bias.view(shape)


class CountingResponseNorm(nn.Module):
    """What a module that computes a global response normalisation becomes.

    Attributes:
        counted: Channels it takes the mean over, those that left included.
        eps: Added to the mean.
        channels_first: Whether the channels lie along dimension 1 instead of the last.
        affine: Names of the parameters that scale and shift each channel.
        normalized_shape: Channels that there are.
        replaced: Name of the class it was before.
    """

    counted: int
    eps: float
    channels_first: bool
    affine: tuple[str, str]
    normalized_shape: tuple[int]
    replaced: str
    weight: Tensor  # what a compiler calls them
    bias: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Normalise activations of four dimensions."""
        weight, bias = self._affine()
        return counting_response_norm(
            input, self.counted, weight, bias, self.eps, self.channels_first
        )

    def _affine(self) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.weight, self.bias
        else:  # noqa: RET505  (a compiler passes over the other branch alone)
            weight, bias = (getattr(self, name) for name in self.affine)
            return weight, bias

    def __prepare_scriptable__(self) -> nn.Module:
        return called(self, {"weight": self.affine[0], "bias": self.affine[1]})

    def extra_repr(self) -> str:
        """Width, epsilon, and what is counted."""
        return f"{self.normalized_shape}, eps={self.eps}, counted={self.counted}"


@dataclass(frozen=True)
class ResponseNorm:
    """How a module normalises responses; the attributes of what it becomes.

    Attributes:
        counted: Channels of its mean.
        eps: Added to the mean.
        channels_first: Whether the channels lie along dimension 1.
        affine: Names of the parameters that scale and shift each channel.
    """

    counted: int
    eps: float
    channels_first: bool
    affine: tuple[str, str]

    def __call__(self, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """What a module is compared with."""
        weight, bias = (parameters[name].flatten() for name in self.affine)
        return counting_response_norm(x, self.counted, weight, bias, self.eps, self.channels_first)


def response_norm(module: nn.Module) -> ResponseNorm | None:
    """How a module normalises responses; None where it does not."""
    if isinstance(module, CountingResponseNorm):
        names = ResponseNorm.__dataclass_fields__
        return ResponseNorm(**{name: getattr(module, name) for name in names})
    width = None if type(module).__module__.startswith("torch.") else width_of(module)
    if width is None or len(list(module.parameters(recurse=False))) != 2:
        return None
    copy, own = randomised(module)
    first, second = own
    for channels_first in (False, True):
        x = noise(2, width, 3, 4) if channels_first else noise(2, 3, 4, width)
        large = run_on(copy, 1e3 * x)  # so large that no epsilon is felt
        for affine in ((first, second), (second, first)):
            like = ResponseNorm(width, 0.0, channels_first, affine)
            if large is not None and close(large, like(1e3 * x, own)):
                return _with_epsilon(copy, x, like, own)
    return None


def _with_epsilon(
    copy: nn.Module, x: Tensor, like: ResponseNorm, own: dict[str, Tensor]
) -> ResponseNorm | None:
    """The way of the module itself, once its epsilon is found.

    An epsilon is felt where inputs are as small, and there a shift would hide all else.
    """
    without = own | {like.affine[1]: torch.zeros_like(own[like.affine[1]])}
    vars(copy)["_parameters"] = {n: nn.Parameter(p, False) for n, p in without.items()}
    for eps in epsilons(copy):
        scale, found = eps or 1e-10, replace(like, eps=eps)
        small = run_on(copy, scale * x)
        if small is not None and close(small / scale, found(scale * x, without) / scale):
            return found
    return None
