"""Rules for everything between the layers: elementwise operators, pooling, reductions.

Nothing here has a weight of its own, except a raw parameter (a layer scale, a class token) that
takes the labels of what it meets; so does a raw buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.labels import along, core, varying
from decayprune.structures.tracing.marks import Mark
from decayprune.structures.tracing.tape import Tape


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


KEEPS_ZERO = words(
    """
    relu relu6 gelu silu mish hardswish hardtanh tanh leaky_relu elu selu celu rrelu abs neg sin
    sign sqrt square tan asin atan sinh asinh erf expm1 log1p softsign tanhshrink hardshrink
    softshrink angle dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
    feature_alpha_dropout floor ceil round trunc nan_to_num quantize_per_tensor pos positive
    """
)
"""Functions of one element that map 0 to 0: a scaled structure stays (roughly) scaled."""

MOVES_ZERO = words(
    """
    sigmoid hardsigmoid logsigmoid softplus exp log log2 log10 cos reciprocal rsqrt isnan isfinite
    isinf logical_not erfc bitwise_not normal bernoulli zeros_like ones_like full_like rand_like
    randn_like empty_like clamp clamp_min clamp_max fill zero threshold
    """
)
"""Functions of one element that may make something else of 0: nothing scales their result."""

SAME = words(
    """
    contiguous clone to float half bfloat16 double type type_as cpu cuda detach requires_grad
    alias get:data get:real get:imag real imag conj resolve_conj int long bool
    """
)
"""Functions that return the same values."""

ADDITIVE = words(
    """
    add sub maximum minimum fmax fmin where masked_fill lerp addcmul addcdiv complex
    """
)
COMPARING = words(
    """
    eq ne lt le gt ge greater less greater_equal less_equal not_equal logical_and logical_or
    logical_xor and or xor isclose
    """
)
MULTIPLICATIVE = words("mul div pow remainder fmod")


def unary(call: Call) -> Any:
    """A function of one element that keeps 0."""
    out = call.run()
    if of_parameter(call, out, True) or (found := call.tape.mark(first(call))) is None:
        return out
    if isinstance(out, Tensor):
        call.tape.put(out, found.labels, found.sources, found.zero)
    elif call.name in ("bool", "int", "float"):
        call.tape.partition.fix(found.labels, f"read by Python through `{call.name}`")
    return out


def unary_moving_zero(call: Call) -> Any:
    """A function of one element that nothing scales; ``clamp`` keeps 0 if its bounds do."""
    tape = call.tape
    if len(call.tensors()) > 1:
        return comparing(call)  # a bound, a mean ... per element
    out, keeps = call.run(), False
    if call.name == "clamp":
        low, high = call.arg(1, "min"), call.arg(2, "max")
        keeps = (low is None or low <= 0) and (high is None or high >= 0)
    if of_parameter(call, out, keeps) or (found := tape.mark(first(call))) is None:
        return out
    if keeps:
        tape.put(out, found.labels, found.sources, found.zero)
        return out
    zero = call.name in ("zeros_like", "zero")
    tape.put(out, found.labels, tape.unscaled(found.labels), zero)
    return out


def first(call: Call) -> Any:
    """The tensor that a call is about."""
    return call.args[0] if call.args else next(iter(call.tensors()), None)


# ---- several operands ------------------------------------------------------------------------


def additive(call: Call) -> Any:
    """add, sub, maximum, where ...: what is scaled is scaled by every operand's sources."""
    if (found := _meet(call)) is None:
        out = call.run()
        of_parameter(call, out, False)
        return out
    tape, out, (labels, marks, constant) = call.tape, call.run(), found
    sources = frozenset[int]().union(*(mark.sources for mark in marks))
    tape.put(out, labels, sources, all(mark.zero for mark in marks) and not constant)
    return out


def comparing(call: Call) -> Any:
    """X > y ...: a mask of the same width."""
    found = _meet(call)
    out = call.run()
    if found is not None:
        call.tape.put(out, found[0], call.tape.unscaled(found[0]), False)
    return out


def multiplicative(call: Call) -> Any:
    """mul, div ...: scaled by the last operand that something scales."""
    if (found := _meet(call)) is None:
        out = call.run()
        of_parameter(call, out, call.name == "mul")
        return out
    tape, out, (labels, marks, _) = call.tape, call.run(), found
    scaled = [mark for mark in marks if tape.has_scale(mark.sources)] or marks
    if call.name in ("div", "pow", "remainder", "fmod"):
        scaled = scaled[:1] if tape.mark(call.args[0]) is scaled[0] else []
    sources = scaled[-1].sources if scaled else tape.unscaled(labels)
    base, exponent = tape.mark(call.args[0]), call.arg(1, "exponent")
    if call.name == "mul":
        zero = any(mark.zero for mark in marks)
    else:  # div, pow, remainder: of the first operand
        zero = base is not None and base.zero
    if call.name == "pow":
        zero = zero and isinstance(exponent, (int, float)) and exponent > 0
    tape.put(out, labels, sources, zero)
    return out


def _meet(call: Call) -> tuple[Tensor, list[Mark], bool] | None:
    """Broadcast the operands' labels against each other and unify what meets.

    Returns:
        The labels of the result, the marks of the labelled operands, and whether an operand
        without labels took part; None if no operand carries labels.
    """
    tape = call.tape
    tensors = [value for value in call.args if isinstance(value, Tensor)]
    tensors += [value for value in call.kwargs.values() if isinstance(value, Tensor)]
    marked = _marked(tape, tensors)
    if not marked:
        return None
    known = {id(value) for value, _ in marked}
    labels, marks = _unified(call, marked, _broadcast([value.shape for value in tensors]))
    for value in tensors:
        if id(value) not in known:
            if (raw := raw_factor(tape, value, labels)) is not None:
                marks.append(raw)
                continue
            size = "x".join(map(str, value.shape))
            reason = f"meets a tensor of shape {size} that keeps its size in {call.name}"
            labels = against_fixed(tape, value, labels, reason)
    plain = [value for value in tensors if value.dtype != torch.bool]
    constant = len(marks) < len(plain) or any(
        isinstance(value, (int, float)) and value != 0 for value in call.args
    )
    return labels, marks, constant


def _marked(tape: Tape, tensors: list[Tensor]) -> list[tuple[Tensor, Mark]]:
    """The operands that carry labels; last those of which only a place is known, no width."""
    marked = [(value, mark) for value in tensors if (mark := tape.marked(value)) is not None]
    if not marked:  # weight * rsqrt(variance + eps), biases by head + a mask
        own = [value for value in tensors if tape.view(value) and value.is_floating_point()]
        if sum(value.numel() > 1 for value in tensors) > 1:
            marked = [(value, mark) for value in own if (mark := tape.raw(value)) is not None]
    return sorted(marked, key=lambda item: tape.is_raw(item[1]))


def _unified(
    call: Call, marked: list[tuple[Tensor, Mark]], shape: torch.Size
) -> tuple[Tensor, list[Mark]]:
    """One label for what meets, and the marks of the operands that have it."""
    tape, reason = call.tape, f"meets channels that stay in {call.name}"
    labels, marks = marked[0][1].labels.expand(shape), [marked[0][1]]
    for value, mark in marked[1:]:
        other = mark.labels.expand(shape)
        if tape.is_raw(mark) and varying(labels) != varying(other):  # no width, but a place
            tape.partition.fix(other, reason)
            labels = against_fixed(tape, value, labels, reason)
        elif _across(labels, other):  # labels vary along one dimension: the width that came first
            if int(core(other).max()) < int(core(labels).max()):
                labels, other, marks = other, labels, [mark]
            why = f"meets another width along another dimension in {call.name}"
            tape.partition.fix(other, why)
        else:
            labels = tape.partition.unify(labels, other, reason)
            marks.append(mark)
    return labels, marks


def _across(labels: Tensor, other: Tensor) -> bool:
    """Whether two widths lie across each other, so that no element tells which meets which."""
    return not set(varying(labels)) & set(varying(other))


def _broadcast(shapes: list[torch.Size]) -> torch.Size:
    longest = max(len(shape) for shape in shapes)
    padded = [(1,) * (longest - len(shape)) + tuple(shape) for shape in shapes]
    return torch.Size(
        [next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True)]
    )


def _aligned(value: Tensor, dim: int, dims: int) -> int:
    """Dimension of ``value`` that is broadcast against ``dim`` of ``dims``; negative: none."""
    return dim - dims + value.dim()


def against_fixed(tape: Tape, value: Tensor, labels: Tensor, reason: str) -> Tensor:
    """Labels that meet a tensor without any: wherever it has full size nothing may leave."""
    for dim in varying(labels):
        own = _aligned(value, dim, labels.dim())
        if own >= 0 and value.shape[own] > 1 and value.stride(own):  # 0: one for all
            labels = tape.partition.collapse(labels, dim, reason)
    return labels


def raw_factor(tape: Tape, value: Tensor, labels: Tensor) -> Mark | None:
    """A parameter or buffer used as it is takes the labels that it meets along one dimension."""
    dims = varying(labels)
    if len(dims) != 1 or tape.name(value) is None:
        return None
    own = _aligned(value, dims[0], labels.dim())
    if own < 0 or value.shape[own] == 1:
        return None
    vector = core(labels, dims).reshape(-1)
    if (view := tape.view(value)) is None or view.axis(own) is None:
        return None
    key = tape.label_dim(value, own, "affine", vector)
    if key is not None and value.numel() > vector.numel():
        tape.labelled_dims[key].table = True
    if tape.is_parameter(value) and view.zero:
        return Mark(along(vector, own, value.shape), tape.scaled_by(key))
    moved = "" if tape.is_parameter(value) else f"the buffer `{tape.name(value)}`"
    return Mark(along(vector, own, value.shape), tape.unscaled(vector, moved), False)


def of_parameter(call: Call, out: Any, zero: bool) -> bool:
    """Say that a result is a function of each element of one parameter: 1 + weight, exp(weight).

    Returns:
        Whether it is, and no width of the parameter is known yet.
    """
    tape = call.tape
    own = [value for value in call.tensors() if tape.view(value) is not None]
    if len(own) != 1 or tape.marked(own[0]) is not None or not isinstance(out, Tensor):
        return False
    others = (value for value in call.tensors() if value is not own[0])
    view = tape.view(own[0])
    if view is None or out.shape != own[0].shape or any(value.numel() != 1 for value in others):
        return False
    tape.put_view(out, replace(view, zero=view.zero and zero))
    return True


def unrelated(call: Call) -> Any:
    """new_zeros and others that read no values of their input."""
    return call.run()


def shape(call: Call) -> Any:
    """x.shape and x.size(): extents of labelled dimensions remember their labels."""
    tape, out, x = call.tape, call.run(), first(call)
    found = tape.marked(x)  # to ask a parameter for its shape tells nothing of its widths
    if found is None:
        return out
    extents = tape.readings.extents(x.shape, found.labels)
    return extents if isinstance(out, tuple) else extents[call.arg(1, "dim")]


def of_values(rule: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """A rule that reads its first operand, be it a parameter (learned queries, a class token)."""

    def reads(call: Call) -> Any:
        tape, x = call.tape, call.args[0] if call.args else None
        view = tape.view(x) if tape.is_parameter(x) and tape.mark(x) is None else None
        if isinstance(x, Tensor) and view is not None:
            x = x.detach()
            tape.put_view(x, view)
            call = replace(call, args=(x, *call.args[1:]))
        return rule(call)

    return reads


RULES = {
    **dict.fromkeys(["get:shape", "size"], shape),
    "new_tensor": unrelated,
    **dict.fromkeys(KEEPS_ZERO, unary),
    **dict.fromkeys(MOVES_ZERO, unary_moving_zero),
    **dict.fromkeys(ADDITIVE, additive),
    **dict.fromkeys(COMPARING, comparing),
    **dict.fromkeys(MULTIPLICATIVE, multiplicative),
}
