"""What a result looks like, without computing it, for a pass that reads no values.

On torch's device "meta" a pass costs next to nothing, but for the operators here: their shape
functions are written in Python there, and take longer than a small layer. What is not simple
(in place, broken inputs, mixed dtypes) is left to torch, which raises where it has to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ONE = """
relu relu6 gelu silu mish hardswish hardtanh tanh leaky_relu elu sigmoid hardsigmoid softplus exp
sqrt rsqrt softmax log_softmax
"""
_OF_ONE_ELEMENT = frozenset(_ONE.split())
_OF_TWO = frozenset(("add", "sub", "mul", "div"))
_ASSIGNING = frozenset(("__iadd__", "__isub__", "__imul__", "__itruediv__"))


def shape_of_result(
    name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """A tensor like the result of a call, without values; None: ask torch.

    Args:
        name: The operator, see :func:`~decayprune.structures.tracing.call.canonical`.
        func: What is called.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not _has_no_values(x) or kwargs.get("out") is not None:
        return None
    if name in _OF_ONE_ELEMENT and kwargs.get("dtype") is None:
        return x if _in_place(func, args, kwargs) else _like(x, x.shape)
    if name in _OF_TWO and len(args) == 2 and not kwargs:
        shape = _broadcast(x, args[1])
        in_place = _in_place(func, args, kwargs)
        return None if shape is None else _like(x, shape) if not in_place else x
    if name in _NORMALISERS:
        vectors = [v for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)]
        return _like(x, x.shape) if _NORMALISERS[name](x, args, vectors) else None
    if name == "linear":
        return _linear(x, *args[1:], **kwargs)
    if name == "scaled_dot_product_attention":
        return _attention(x, args, kwargs)
    return None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """A linear layer whose input, weight and bias fit."""
    vectors = [] if bias is None else [bias]
    fits = x.dim() > 0 and weight.dim() == 2 and x.shape[-1] == weight.shape[1]
    fits = fits and all(vector.shape == weight.shape[:1] for vector in vectors)
    if not fits or not all(_has_no_values(t) and t.dtype == x.dtype for t in (weight, *vectors)):
        return None
    return torch.empty(x.shape[:-1] + weight.shape[:1], dtype=x.dtype, device="meta")


def _has_no_values(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta and value.is_floating_point()


def _in_place(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """A method such as ``add_``, ``x += y``, or a function that is told to."""
    name = getattr(func, "__name__", "")
    method = name in _ASSIGNING if name.startswith("__") else name.endswith("_")
    return method or kwargs.get("inplace") is True or args[-1] is True


def _like(x: Tensor, shape: torch.Size) -> Tensor:
    if shape == x.shape and 0 not in x.stride():
        return torch.empty_strided(shape, x.stride(), dtype=x.dtype, device="meta")
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _broadcast(x: Tensor, other: Any) -> torch.Size | None:
    """The shape that a number or a tensor of the same kind makes of another."""
    if type(other) in (int, float):
        return x.shape
    if not _has_no_values(other) or other.dtype != x.dtype:
        return None
    if x.shape == other.shape:
        return x.shape
    shape: torch.Size = torch.broadcast_shapes(x.shape, other.shape)  # type: ignore[no-untyped-call]
    return shape


def _of_channels(x: Tensor, _args: Sequence[Any], vectors: Sequence[Tensor]) -> bool:
    """Whether a batch norm's vectors fit the channels."""
    return x.dim() > 1 and all(vector.shape == x.shape[1:2] for vector in vectors)


def _of_last(x: Tensor, args: Sequence[Any], vectors: Sequence[Tensor]) -> bool:
    """Whether a layer norm's shape is that of the last dimensions."""
    shape = tuple(args[1]) if len(args) > 1 else ()
    fits = len(shape) > 0 and tuple(x.shape[-len(shape) :]) == shape
    return fits and all(tuple(vector.shape) == shape for vector in vectors)


def _of_groups(x: Tensor, args: Sequence[Any], vectors: Sequence[Tensor]) -> bool:
    """Whether the channels can be divided into a group norm's groups."""
    return _of_channels(x, args, vectors) and len(args) > 1 and x.shape[1] % int(args[1]) == 0


_NORMALISERS: Mapping[str, Callable[[Tensor, Sequence[Any], Sequence[Tensor]], bool]] = {
    "batch_norm": _of_channels,
    "layer_norm": _of_last,
    "rms_norm": _of_last,
    "group_norm": _of_groups,
}


def _attention(q: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Heads of equal number and size; masks, of which the shape would have to be looked at, not."""
    if len(args) != 3 or kwargs.get("attn_mask") is not None or kwargs.get("enable_gqa"):
        return None
    k, v = args[1:]
    if not (_has_no_values(k) and _has_no_values(v) and q.dtype == k.dtype == v.dtype):
        return None
    fits = q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.shape[-1] == k.shape[-1]
    fits = fits and k.shape[-2] == v.shape[-2]
    return _like(q, q.shape[:-1] + v.shape[-1:]) if fits else None
