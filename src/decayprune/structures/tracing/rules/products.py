"""Rules for contractions: matmul, attention, and composite calls that are left alone.

Where the batch dimensions of a product carry labels (the heads of an attention), whole heads
leave: cutting inside a head would change the scale 1/sqrt(width of a head). Queries, keys and
values of a head are tied; with grouped queries a key head and all its query heads. Where no batch
dimension carries labels, the contracted dimensions are unified pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decayprune.structures.tracing.call import Call, tensors_in
from decayprune.structures.tracing.labels import along, core, varying
from decayprune.structures.tracing.marks import Mark
from decayprune.structures.tracing.rules.elementwise import against_fixed, raw_factor
from decayprune.structures.tracing.rules.layers import (
    ALONG_CHANNELS,
    handed_out,
    parameter_times,
    times_parameter,
)
from decayprune.structures.tracing.tape import Tape

_MET = "meets channels that stay in attention"
_HEADS = "attention reads a whole head"
_DISTANT = "it is spread over two dimensions, and a distance sums over one of them"


def matmul(call: Call) -> Any:
    """matmul, bmm, mm and ``@``."""
    tape, (a, b) = call.tape, call.args[:2]
    if tape.is_weight(b):
        return times_parameter(call)
    if tape.is_weight(a) and b.dim() >= 2:
        return parameter_times(call)
    out = call.run()
    if a.dim() < 2 or b.dim() < 2:
        tape.fix([a, b], "product of a vector")
        return out
    marks = (tape.mark(a), tape.mark(b))
    macs = out.numel() * a.shape[-1]
    if marks == (None, None):
        tape.operator(tape.owner(None), macs)
        return out
    left, right = tape.labels(a), tape.labels(b)
    if any(d < t.dim() - 2 for t in (left, right) for d in varying(t)):
        _by_head(tape, out, [left, right], marks, [macs], (a, b))
    else:
        _by_pair(tape, out, left, right, marks, macs)
    return out


_ALIGNED = 8
"""Channels in 16 bytes of half precision, in which a model may run later."""


def grouped(call: Call) -> Any:
    """grouped_mm: rows that are sorted by experts, times the matrix (in, out) of their expert.

    Its kernels take rows of whole 16 bytes alone, so channels leave in blocks of as many.
    """
    tape, (x, weight) = call.tape, call.args[:2]
    if not tape.is_weight(weight) or weight.dim() != 3 or x.dim() != 2:
        return left_alone(call)
    aligned = [(tape.channels(x, -1, ALONG_CHANNELS), 1)]
    rows = handed_out(tape, weight, -1)
    if weight.stride(-1) == 1:
        aligned.append((rows, 2))  # often gates and values, each of which is in blocks then
    for labels, parts in aligned:
        half = labels.numel() % (parts * _ALIGNED) == 0
        blocks = labels.view(-1, _ALIGNED if half else max(1, 16 // x.element_size()))
        first = blocks[:, :1].expand(blocks.shape)
        tape.partition.unify(blocks, first, "lies within 16 bytes of a fixed width")
    return times_parameter(call)


def _by_head(
    tape: Tape,
    out: Tensor,
    labels: list[Tensor],
    marks: tuple[Mark | None, ...],
    macs: list[int],
    operands: tuple[Tensor, ...],
    mask: Tensor | None = None,
) -> None:
    """Batch dimensions carry labels: whole heads leave."""
    for i, value in enumerate(labels):
        for d in varying(value):
            if d >= value.dim() - 2:
                labels[i] = value = tape.partition.collapse(value, d, _HEADS)
    batch = out.shape[:-2]
    heads = [value[..., 0, 0].expand(batch) for value in labels]
    joined = heads[0]
    for value in heads[1:]:
        joined = tape.partition.unify(joined, value, _MET)
    if mask is not None:
        joined = _meet_mask(tape, joined, mask)
    # A product is linear in each operand: one of them carries, or it would shrink twice. In an
    # attention the last one holds the values: to scale queries or keys would flatten the softmax.
    scaled = [mark for mark in marks if mark is not None and tape.has_scale(mark.sources)]
    sources = scaled[-1].sources if scaled else tape.unscaled(joined)
    zero = any(mark is not None and mark.zero for mark in marks)
    dims = varying(joined)
    if len(dims) == 1:
        vector = core(joined).reshape(-1)
        tape.heads.append(vector)
        for constant in macs:
            tape.operator(tape.owner(None), constant // vector.numel(), vector)
        _pass_heads(tape, vector, operands, labels)
    else:
        for constant in macs:
            tape.operator(tape.owner(None), constant)
    tape.put(out, joined[..., None, None].expand(out.shape), sources, zero)


def _meet_mask(tape: Tape, heads: Tensor, mask: Tensor) -> Tensor:
    """A mask or bias of its own per head: its heads leave with the others, or nothing leaves."""
    labels = tape.labels(mask)
    for d in varying(labels):
        if d >= labels.dim() - 2:
            labels = tape.partition.collapse(labels, d, _HEADS)
    if varying(labels):
        return tape.partition.unify(heads, labels[..., 0, 0].expand(heads.shape), _MET)
    if raw_factor(tape, mask, heads[..., None, None].expand(*heads.shape, *mask.shape[-2:])):
        return heads
    return against_fixed(tape, mask[..., 0, 0], heads, _MET)


def _pass_heads(
    tape: Tape, heads: Tensor, operands: tuple[Tensor, ...], labels: list[Tensor]
) -> None:
    """The running module may keep the number of heads, of key heads, and the width of them all."""
    width = operands[-1].shape[-1]
    vary = [core(value).reshape(-1) for value in labels if len(varying(value)) == 1]
    for vector in (heads, *(torch.unique_consecutive(value) for value in vary)):
        tape.passes(vector)
        tape.passes(vector.repeat_interleave(width))


def _by_pair(
    tape: Tape,
    out: Tensor,
    left: Tensor,
    right: Tensor,
    marks: tuple[Mark | None, ...],
    macs: int,
) -> None:
    """A plain product: contracted dimensions pair by pair, outer ones keep their labels."""
    inner = _vector(tape, left, -1), _vector(tape, right, -2)
    joined = tape.partition.unify(*inner, "meets channels that stay in matmul")
    rows, columns = _vector(tape, left, -2), _vector(tape, right, -1)
    if inner[0].any() or inner[1].any():
        for labels in (rows, columns):
            tape.partition.fix(labels, "a product mixes it with another width")
        found = [mark for mark in marks if mark is not None]
        tape.consume(found[-1], joined, None)
        tape.operator(tape.owner(None), macs // joined.numel(), joined)
        return
    if rows.any() and columns.any():
        tape.partition.fix(rows, "meets another width along another dimension in matmul")
        rows = torch.zeros_like(rows)
    vector, dim = (rows, -2) if rows.any() else (columns, -1)
    mark = marks[0] if rows.any() else marks[1]
    tape.operator(tape.owner(None), macs // vector.numel(), vector)
    if mark is not None:
        tape.put(out, along(vector, out.dim() + dim, out.shape), mark.sources, mark.zero)


def distances(call: Call) -> Any:
    """cdist: channels that are zero in both operands add nothing to a distance."""
    tape, out = call.tape, call.run()
    a, b = call.arg(0, "x1"), call.arg(1, "x2")
    for value, other in ((a, b), (b, a)):
        if tape.is_parameter(value):  # a codebook
            tape.label_dim(value, -1, "affine", tape.channels(other, -1, _DISTANT))
    of_a, of_b = (
        tape.channels(other if tape.is_parameter(value) else value, -1, _DISTANT)
        for value, other in ((a, b), (b, a))
    )
    joined = tape.partition.unify(of_a, of_b, "meets channels that stay in cdist")
    for value in (a, b):
        tape.consume(tape.mark(value), joined, None)
    return out


def _vector(tape: Tape, labels: Tensor, dim: int) -> Tensor:
    """Labels along one of the last two dimensions, where the other does not vary too."""
    dim %= labels.dim()
    for d in varying(labels):
        if d != dim and dim in varying(labels):
            tape.partition.fix(
                labels, "it is spread over two dimensions, and a product sums over one of them"
            )
            return torch.zeros(labels.shape[dim], dtype=torch.int64, device="cpu")
    if dim not in varying(labels):
        return torch.zeros(labels.shape[dim], dtype=torch.int64, device="cpu")
    return core(labels, [dim]).reshape(-1)


def attention(call: Call) -> Any:
    """scaled_dot_product_attention, also with grouped queries."""
    tape, out = call.tape, call.run()
    operands = tuple(call.arg(i, n) for i, n in enumerate(("query", "key", "value")))
    query, key, value = operands
    marks = tuple(tape.mark(operand) for operand in operands)
    scores = out.numel() // out.shape[-1] * key.shape[-2]
    macs = [scores * query.shape[-1], scores * value.shape[-1]]
    labels = [tape.labels(operand) for operand in operands]
    if call.kwargs.get("enable_gqa"):
        times = query.shape[-3] // key.shape[-3]
        labels[1:] = [t.repeat_interleave(times, -3) for t in labels[1:]]
    mask = call.arg(3, "attn_mask")
    if any(d < t.dim() - 2 for t in labels for d in varying(t)):
        _by_head(tape, out, labels, marks, macs, operands, mask)
        return out
    # One head over the whole width: the scores are divided by the root of the width of queries,
    # so that none of it may leave; columns of the values are summed by themselves.
    tape.fix((*operands[:2], mask), "attention scales by the width of its only head")
    columns = _vector(tape, labels[2], -1)
    tape.operator(tape.owner(None), macs[0])
    tape.operator(tape.owner(None), macs[1] // columns.numel(), columns)
    if marks[2] is not None:
        tape.put(out, labels[2][..., :1, :].expand(out.shape), marks[2].sources, marks[2].zero)
    return out


def left_alone(call: Call, reason: str | None = None) -> Any:
    """Composite and unknown operators: what goes in is fixed, what they compute is counted."""
    tape, out = call.tape, call.run()
    tape.operator(tape.owner(None), _COUNTED.get(call.name, _nothing)(call, out))
    if next(tensors_in(out), None) is None and call.name not in _READS_VALUES:
        return out  # a shape, a device, a property
    reason = reason or _REASONS.get(call.name, f"unknown operator `{call.name}`")
    tape.fix(call.tensors(), reason)
    for value in call.tensors():
        layer = tape.owner(value)
        if tape.is_parameter(value) and value.dim() > 1:
            tape.refused.append((layer, value.shape[0], reason + tape.where()))
    return out


def _nothing(call: Call, out: Any) -> int:
    return 0


def _macs_of_multi_head(call: Call, out: Any) -> int:
    """Projections of queries, keys, values and outputs, and the two products between them."""
    query, key, value = (call.arg(i, n) for i, n in enumerate(("query", "key", "value")))
    width, length = call.arg(3, "embed_dim_to_check"), key.shape[0]
    projections = (2 * query.numel() + key.numel() + value.numel()) * width
    return int(projections + 2 * query.numel() * length)


def _macs_of_recurrent(call: Call, out: Any) -> int:
    """Every matrix is applied at every position (torch's counter misses fused ones)."""
    x = call.args[0]
    weights = [t for t in call.tensors() if call.tape.is_parameter(t) and t.dim() == 2]
    return int(x.numel() // x.shape[-1]) * sum(t.numel() for t in weights)


_REASONS = {
    "multi_head_attention_forward": "no plain nn.MultiheadAttention: fixes its width",
}
_READS_VALUES = ("item", "tolist", "numpy", "bool", "float", "int", "array", "index")
_COUNTED: dict[str, Callable[[Call, Any], int]] = {
    "multi_head_attention_forward": _macs_of_multi_head,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _macs_of_recurrent),
}

CONTRACTIONS = {
    "matmul": matmul,
    "bmm": matmul,
    "mm": matmul,
    "grouped_mm": grouped,
    "cdist": distances,
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(_COUNTED, left_alone),
}
