"""What a module normalises, by what it computes: neither its class nor its name is believed.

Layer norms and RMS norms are written anew in every library: channels first or last, the weight as
it is or plus one, the parameters under any name. A copy of the module with random parameters is
run on small random inputs; it is a normaliser if it computes what one computes.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12, 0.0)
"""What code uses that holds its epsilon in no attribute."""


@dataclass(frozen=True)
class Normaliser:
    """A layer norm or an RMS norm over one dimension.

    Attributes:
        width: Channels that it normalises over.
        centred: Whether the mean is subtracted first: a layer norm.
        channels_first: Whether the channels lie along dimension 1 instead of the last.
        eps: Added to the variance or the mean square; None: the smallest of the dtype.
        weight: Name of the parameter that scales each channel, None without.
        bias: Name of the parameter that shifts each channel, None without.
        offset: Added to the weight (Gemma: 1).
    """

    width: int
    centred: bool
    channels_first: bool = False
    eps: float | None = 1e-5
    weight: str | None = "weight"
    bias: str | None = None
    offset: float = 0.0

    def __call__(self, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """The normaliser in plain words: the reference a module is compared with."""
        weight, bias = (parameters[n].flatten() if n else None for n in (self.weight, self.bias))
        weight = weight if weight is None else weight + self.offset
        x = x.movedim(1, -1) if self.channels_first else x
        if self.centred:
            y = F.layer_norm(x, (self.width,), weight, bias, self.eps or 0.0)
        else:
            y = F.rms_norm(x, (self.width,), weight, self.eps)
        return y.movedim(-1, 1) if self.channels_first else y


def normaliser(module: nn.Module) -> Normaliser | None:
    """The normaliser that a module is; None where it is none, or none of one dimension."""
    kind = type(module)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if len(module.normalized_shape) != 1:
            return None
        if kind.forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
            own = dict(module.named_parameters(recurse=False))
            weight, bias = (name if name in own else None for name in ("weight", "bias"))
            centred, width = isinstance(module, nn.LayerNorm), module.normalized_shape[0]
            return Normaliser(width, centred, False, module.eps, weight, bias)
    elif kind.__module__.startswith("torch."):
        return None
    return _by_computation(module)


def followed(module: nn.Module) -> bool:
    """Whether a normaliser runs what lies inside it on the result: an activation, usually."""
    own = not type(module).forward.__module__.startswith("torch.")
    return own and next(module.children(), None) is not None


def _rest(module: nn.Module, y: Tensor) -> Tensor:
    """What a normaliser makes of its result."""
    for part in module.children() if followed(module) else ():
        y = part(y)
    return y


def is_group_norm(module: nn.Module) -> bool:
    """Whether a subclass of ``nn.GroupNorm`` still computes one, and then runs its parts."""
    if not isinstance(module, nn.GroupNorm):
        return False
    if type(module).forward is nn.GroupNorm.forward:
        return True
    if not _plain_parts(module):
        return False
    copy, own = randomised(module)
    x = noise(2, module.num_channels, 3, 3)
    y = run_on(copy, x)
    expected = F.group_norm(x, module.num_groups, own.get("weight"), own.get("bias"), module.eps)
    return y is not None and close(y, _rest(copy, expected))


def _plain_parts(module: nn.Module) -> bool:
    """Whether what lies inside a module holds no tensors, and is Python."""
    inside = [part for part in module.modules() if part is not module]
    held = (t for part in inside for t in (*part.parameters(False), *part.buffers(False)))
    return next(held, None) is None and not any(
        isinstance(part, torch.jit.ScriptModule) for part in inside
    )


def _by_computation(module: nn.Module) -> Normaliser | None:
    width = width_of(module)
    if width is None:
        return None
    copy, own = randomised(module)
    for first, dims in ((False, 4), (False, 3), (True, 4), (True, 3), (True, 5)):
        shape = (2, width, *[2] * (dims - 2)) if first else (*[2] * (dims - 1), width)
        x = noise(*shape)
        y = run_on(copy, 1e3 * x)  # so large that no epsilon is felt
        if y is None:
            continue
        ways = _candidates(width, first, own)
        found = [n for n in ways if close(y, _rest(copy, n(1e3 * x, own)))]
        smallest = [None] if isinstance(module, nn.RMSNorm) and module.eps is None else []
        for like, eps in itertools.product(found[:1], [*smallest, *epsilons(module)]):
            exact = Normaliser(width, like.centred, first, eps, like.weight, like.bias, like.offset)
            small = x * (eps or torch.finfo(x.dtype).eps) ** 0.5  # so small that it is
            y = run_on(copy, small)
            if y is not None and close(y, _rest(copy, exact(small, own))):
                return exact
    return None


def width_of(module: nn.Module) -> int | None:
    """Channels of what may be a normaliser: one input, one or two vectors, parts without any."""
    if isinstance(module, torch.jit.ScriptModule) or not _plain_parts(module):
        return None
    takes = list(inspect.signature(type(module).forward).parameters.values())[1:]
    if len(takes) != 1 or takes[0].kind in (takes[0].VAR_POSITIONAL, takes[0].VAR_KEYWORD):
        return None
    own = list(module.parameters(recurse=False))
    if not own:
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            return module.normalized_shape[0]
        return None
    widths = {p.numel() for p in own}
    vectors = all(p.dim() and p.numel() == max(p.shape) > 1 for p in own)
    return widths.pop() if vectors and len(widths) == 1 and len(own) <= 2 else None


def _candidates(width: int, first: bool, own: dict[str, Tensor]) -> Iterator[Normaliser]:
    names = [*own, None, None][:2]
    for weight, bias in (names, names[::-1]):
        if weight is None and bias is not None:
            continue
        if bias is None:
            yield Normaliser(width, False, first, 0.0, weight)
            yield Normaliser(width, False, first, 0.0, weight, offset=1.0)
        yield Normaliser(width, True, first, 0.0, weight, bias)


def epsilons(module: nn.Module) -> list[float]:
    """Numbers that a module may add to what it divides by, its own ones first."""
    own = [v for v in vars(module).values() if isinstance(v, float) and 0 < v < 1]
    return list(dict.fromkeys([*own, *_EPSILONS]))


def randomised(module: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy with other parameters: those of a fresh norm may be 0, and hide what it does."""
    given = enumerate(module.named_parameters(recurse=False))
    own = {n: noise(*p.shape) + 2 + i for i, (n, p) in given}  # no two alike
    copy = _bare(module)
    absent = dict.fromkeys(module._parameters)
    vars(copy)["_parameters"] = absent | {n: nn.Parameter(p, False) for n, p in own.items()}
    return copy, own


def _bare(module: nn.Module) -> nn.Module:
    """A copy that nobody watches, with the same tensors and with parts of its own."""
    copy: nn.Module = object.__new__(type(module))
    hooks = {name: OrderedDict[int, Any]() for name in vars(module) if name.endswith("_hooks")}
    vars(copy).update(vars(module) | hooks)
    parts = {name: part and _bare(part) for name, part in module._modules.items()}
    vars(copy)["_modules"] = parts
    return copy


def run_on(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a module makes of an input, None where it takes none like it."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = type(module).forward(module, x.clone())
    except Exception:  # whatever it is, it is no normaliser of this input
        return None
    return y if isinstance(y, Tensor) and y.shape == x.shape else None


def noise(*shape: int) -> Tensor:
    """The same random numbers for the same shape, in double precision."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def close(y: Tensor, expected: Tensor) -> bool:
    """Whether a module has computed what was expected."""
    # Many compute in single precision, whatever the input is.
    return torch.allclose(y.to(expected), expected, 1e-4, 1e-5)
