"""Normalisers that count channels which have left the model.

A layer norm (or a group norm with several channels to a group) computes one mean and one variance
over many channels, so removing channels changes it for all the others, even where the removed ones
were exact zeros. The normalisers here remember how many channels there were and count the missing
ones as the zeros they had become: what they compute for the channels that are left is, up to
rounding, what the full normaliser computed. They are ordinary modules: same parameters under the
same names, saved, loaded, exported and trained like any other.

The zeros are really put there, for torch's own kernel: it reads the activation once and is faster
than a mean and a variance of our own, and exporters know a padding and a normaliser.

They can be scripted (:func:`torch.jit.script`). So their code keeps to what a compiler of Python
types knows, and annotations here are no strings.
"""

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
    if weight is not None:
        weight = _padded(weight.flatten(), 1, counted, 0)
    if bias is not None:
        bias = _padded(bias.flatten(), 1, counted, 0)
    y = F.layer_norm(x, [counted], weight, bias, eps)
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
    eps = _epsilon(x) if eps is None else eps
    if weight is not None:
        weight = weight.flatten() + offset if offset != 0 else weight.flatten()
    y = F.rms_norm(x, [x.shape[-1]], weight, eps * times)
    return y.mul(times**0.5).movedim(-1, dim)


def _epsilon(x: Tensor) -> float:
    """The distance from 1 to the next number of its dtype; a compiler knows no ``finfo``."""
    if x.dtype == torch.float64:
        return 2.0**-52
    if x.dtype == torch.float16:
        return 2.0**-10
    return 2.0**-7 if x.dtype == torch.bfloat16 else 2.0**-23


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
    if weight is not None:
        weight = _padded(weight, groups, counted, 0)
    if bias is not None:
        bias = _padded(bias, groups, counted, 0)
    y = F.group_norm(x, groups, weight, bias, eps)
    y = torch.unflatten(y, 1, [groups, counted // groups])
    return y[:, :, :there].reshape(shape)


def _padded(value: Tensor, groups: int, counted: int, dim: int) -> Tensor:
    """Zeros behind the channels of every group, until there are ``counted`` of them."""
    dim = dim % value.dim()
    there = value.shape[dim]
    behind = value.dim() - 1 - dim
    grouped = torch.unflatten(value, dim, [groups, there // groups])
    missing = (counted - there) // groups
    padded = F.pad(grouped, [0, 0] * behind + [0, missing])  # counts dimensions from the last
    return padded.flatten(dim, dim + 1)


def called(module: nn.Module, names: dict[str, str | None]) -> nn.Module:
    """A copy for a compiler, which reads attributes by names that are written down alone.

    Args:
        module: A stand-in of a layer that may call its parameters anything; the copy shares them.
        names: What a parameter is called in the code, and what in the module; None: there is none.
    """
    copy: nn.Module = object.__new__(type(module))
    own = {name: value for name, value in vars(module).items() if name not in names}
    other = {
        name: value for name, value in module._parameters.items() if name not in names.values()
    }
    vars(copy).update(own)
    found = {name: module._parameters[old] if old else None for name, old in names.items()}
    vars(copy)["_parameters"] = {**other, **found}
    return copy


class CountingLayerNorm(nn.LayerNorm):
    """What a :class:`torch.nn.LayerNorm`, or a module that computes the same, becomes.

    Attributes:
        counted: Channels it computes mean and variance over, those that left included.
        channels_first: Whether the channels lie along dimension 1 instead of the last.
        affine: Names of the parameters that scale and shift each channel, None without.
        followed: Whether it runs what lies inside it on the result.
        replaced: Name of the class it was before.
    """

    counted: int
    channels_first: bool
    affine: tuple[str | None, str | None]
    followed: bool = False
    replaced: str

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; channels along the last dimension, or the second one."""
        weight, bias = self._affine()
        dim = 1 if self.channels_first else -1
        y = counting_layer_norm(input, self.counted, weight, bias, self.eps, dim)
        if self.followed:
            for part in self.children():
                y = part(y)
        return y

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.weight, self.bias
        else:  # noqa: RET505  (a compiler passes over the other branch alone)
            weight, bias = (getattr(self, name) if name else None for name in self.affine)
            return weight, bias

    def __prepare_scriptable__(self) -> nn.Module:
        return called(self, {"weight": self.affine[0], "bias": self.affine[1]})

    def extra_repr(self) -> str:
        """Width, epsilon, and what is counted."""
        return f"{tuple(self.normalized_shape)}, eps={self.eps}, counted={self.counted}"


class CountingGroupNorm(nn.GroupNorm):
    """What a :class:`torch.nn.GroupNorm` becomes when channels leave it, as many in every group.

    Attributes:
        counted: Channels of all groups together, those that left included.
        followed: Whether it runs what lies inside it on the result.
        replaced: Name of the class it was before.
    """

    counted: int
    followed: bool = False
    replaced: str

    def forward(self, input: Tensor) -> Tensor:
        """Normalise activations of shape ``(batch, channels, ...)``."""
        y = counting_group_norm(
            input, self.num_groups, self.counted, self.weight, self.bias, self.eps
        )
        if self.followed:
            for part in self.children():
                y = part(y)
        return y

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
        followed: Whether it runs what lies inside it on the result.
        replaced: Name of the class it was before.
    """

    counted: int
    channels_first: bool
    affine: tuple[str | None, str | None]
    offset: float
    followed: bool = False
    replaced: str

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; channels along the last dimension, or the second one."""
        dim = 1 if self.channels_first else -1
        y = counting_rms_norm(x, self.counted, self._scale(), self.eps, dim, self.offset)
        if self.followed:
            for part in self.children():
                y = part(y)
        return y

    def _scale(self) -> Tensor | None:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.weight
        else:  # noqa: RET505
            return getattr(self, self.affine[0]) if self.affine[0] else None

    def __prepare_scriptable__(self) -> nn.Module:
        return called(self, {"weight": self.affine[0]})

    def extra_repr(self) -> str:
        """Width, epsilon, and what is counted."""
        return f"{tuple(self.normalized_shape)}, eps={self.eps}, counted={self.counted}"
