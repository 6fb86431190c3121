"""Rules for layers with weights: who hands out a width, who reads it, who only scales it.

A *producer* (convolution, linear layer, embedding) gives its output new labels; the dimension of
its weight that reads the input carries the input's labels. A depthwise convolution hands nothing
out: its weight is one more factor of each channel.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.labels import along, core, varying
from decayprune.structures.tracing.marks import Mark
from decayprune.structures.tracing.rules.elementwise import of_values
from decayprune.structures.tracing.tape import Tape

ALONG_CHANNELS = "a layer reads it along another dimension than its channels"


def handed_out(tape: Tape, weight: Tensor, dim: int) -> Tensor:
    """Labels of a producer's outputs: new ones, or those of its first call."""
    known = tape.known(weight, dim)
    if known is not None:
        return known
    labels = tape.partition.fresh(weight.shape[dim])
    if tape.label_dim(weight, dim, "row", labels) is None:
        reason = tape.computed()
        tape.refused.append((tape.owner(weight), weight.shape[dim], reason + tape.where()))
    return labels


def convolution(call: Call) -> Any:
    """conv1d, conv2d, conv3d."""
    tape, out = call.tape, call.run()
    x, weight, bias = call.arg(0, "input"), call.arg(1, "weight"), call.arg(2, "bias")
    groups = call.arg(6, "groups", 1)
    if groups > 1 and weight.shape[1] == 1:
        tape.readings.read(groups, tape.labels(x), x.dim() - weight.dim() + 1)
        return _depthwise(tape, x, weight, bias, out, groups)
    channel = weight.dim() - 2  # an input without a batch dimension has channels first
    into = tape.channels(x, x.dim() - 1 - channel, ALONG_CHANNELS)
    labels = handed_out(tape, weight, 0)
    if groups > 1:
        labels, into = tie_groups(tape, labels, groups), tie_groups(tape, into, groups)
    column = into[: weight.shape[1]]
    producer(tape, weight, bias, (0, labels), (1, column), x)
    layer = tape.owner(weight)
    tape.attribute(layer, "out_channels", labels)
    tape.attribute(layer, "in_channels", into)
    positions = out.numel() // weight.shape[0] * prod(weight.shape[2:])
    tape.operator(layer, positions, labels, column)
    tape.produce(out, -1 - channel, labels, sources_of(tape, weight, 0, bias))
    return out


def tie_groups(tape: Tape, labels: Tensor, groups: int) -> Tensor:
    """Each group of a grouped convolution loses the same offsets."""
    rows = labels.view(groups, -1)
    first = rows[:1].expand(rows.shape)
    tape.partition.unify(rows, first, "shares a grouped convolution with a fixed width")
    return labels


def producer(
    tape: Tape,
    weight: Tensor,
    bias: Tensor | None,
    row: tuple[int, Tensor],
    column: tuple[int, Tensor],
    x: Tensor,
) -> None:
    """Record rows, bias and columns of a layer and that it consumes its input."""
    tape.label_dim(weight, row[0], "row", row[1])
    tape.label_dim(bias, -1, "row", row[1])
    key = tape.label_dim(weight, column[0], "column", column[1])
    parts, found = tape.parts(weight), tape.mark(x)
    if parts is not None and found is not None and not parts.scales(column[0]):
        _has_to_be_zero(tape, found, column[1])
    tape.consume(found, column[1], key, normed=parts is not None)


def _has_to_be_zero(tape: Tape, found: Mark, read: Tensor) -> None:
    """Columns of zeros of a standardised weight leave nothing out: what they read has to be 0."""
    if not found.zero:
        tape.partition.fix(read, "read by a standardised weight where it is not 0 any more")
    for source in found.sources:
        key, labels = tape.sources[source]
        if key is None:
            tape.partition.fix(labels, "read by a standardised weight, and nothing scales it")


def sources_of(tape: Tape, weight: Tensor, dim: int, bias: Tensor | None) -> frozenset[int]:
    """What scales a producer's output: its rows and its bias."""
    parts, labels = tape.parts(weight), tape.known(weight, dim)
    if parts is not None and labels is not None and not parts.scales(dim):
        return tape.unscaled(labels)
    return tape.scaled_by(tape.key(weight, dim), tape.key(bias, -1))


def _depthwise(
    tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, groups: int
) -> Tensor:
    """Every channel has filters of its own: they belong to the structure of that channel."""
    dim = x.dim() - weight.dim() + 1
    into = tape.channels(x, dim, ALONG_CHANNELS)
    labels = into.repeat_interleave(weight.shape[0] // groups)
    keys = [tape.label_dim(weight, 0, "affine", labels), tape.label_dim(bias, 0, "affine", labels)]
    layer, found = tape.owner(weight), tape.mark(x)
    for name, counted in (("out_channels", labels), ("in_channels", into), ("groups", into)):
        tape.attribute(layer, name, counted)
    tape.operator(layer, out.numel() // weight.shape[0] * prod(weight.shape[2:]), labels)
    if found is not None:
        scaled, parts = tape.has_scale(found.sources), tape.parts(weight)
        own = tape.scaled_by(*(keys[1:] if scaled else keys))
        if not scaled and parts is not None and not parts.scales(0):
            own = tape.unscaled(labels)
        tape.put(out, along(labels, dim, out.shape), found.sources | own if scaled else own)
    return out


def transposed_convolution(call: Call) -> Any:
    """conv_transpose1d, 2d, 3d: the weight is (in, out / groups, ...)."""
    tape, out = call.tape, call.run()
    x, weight, bias = call.arg(0, "input"), call.arg(1, "weight"), call.arg(2, "bias")
    groups = call.arg(6, "groups", 1)
    dim = x.dim() - weight.dim() + 1
    into = tape.channels(x, dim, ALONG_CHANNELS)
    row = handed_out(tape, weight, 1)
    labels = row.repeat(groups)
    if groups > 1:
        into = tie_groups(tape, into, groups)
    producer(tape, weight, None, (1, row), (0, into), x)
    tape.label_dim(bias, 0, "row", labels)
    layer = tape.owner(weight)
    tape.attribute(layer, "out_channels", labels)
    tape.attribute(layer, "in_channels", into)
    positions = x.numel() // weight.shape[0] * prod(weight.shape[2:])
    tape.operator(layer, positions, into, row)
    tape.produce(out, dim, labels, sources_of(tape, weight, 1, bias))
    return out


def linear(call: Call) -> Any:
    """linear: the weight is (out, in)."""
    x, weight, bias = call.arg(0, "input"), call.arg(1, "weight"), call.arg(2, "bias")
    return _product(call.tape, call.run(), (x, -1), weight, (-2, -1), bias)


def addmm(call: Call) -> Any:
    """A bias plus x times a parameter (in, out), as GPT-2's Conv1D does it."""
    bias, x, weight = call.arg(0, "input"), call.arg(1, "mat1"), call.arg(2, "mat2")
    return _product(call.tape, call.run(), (x, -1), weight, (-1, -2), bias)


def times_parameter(call: Call) -> Any:
    """``x @ weight`` with a parameter as weight (in, out), or a stack of them."""
    x, weight = call.args[:2]
    return _product(call.tape, call.run(), (x, -1), weight, (-1, -2))


def parameter_times(call: Call) -> Any:
    """``weight @ x`` with a parameter as weight (out, in), or a stack of them."""
    weight, x = call.args[:2]
    return _product(call.tape, call.run(), (x, -2), weight, (-2, -1))


def _product(
    tape: Tape,
    out: Tensor,
    operand: tuple[Tensor, int],
    weight: Tensor,
    dims: tuple[int, int],
    bias: Tensor | None = None,
) -> Tensor:
    """A product with a weight: it reads one dimension of its operand and hands out another.

    Args:
        tape: The record.
        out: The result.
        operand: What is multiplied, and the dimension that is summed over.
        weight: A parameter, moved or not.
        dims: Dimensions of the weight that are handed out and read.
        bias: Added along what is handed out.
    """
    (x, dim), (row, column) = operand, dims
    layer, found = tape.owner(weight), tape.mark(x)
    labels = handed_out(tape, weight, row)
    if found is not None and _has_own(tape, weight, x):
        return _across(tape, out, x, dim, weight, labels, bias)
    if found is not None and varying(found.labels) and dim % x.dim() not in varying(found.labels):
        return _across(tape, out, x, dim, weight, labels, bias)
    into = tape.channels(x, dim, ALONG_CHANNELS)
    producer(tape, weight, bias, (row, labels), (column, into), x)
    for name, counted in (("out_features", labels), ("in_features", into)):
        tape.attribute(layer, name, counted)
    tape.attribute(layer, "nf", labels)  # what GPT-2's Conv1D calls it
    tape.operator(layer, out.numel() // out.shape[dim], labels, into)
    tape.produce(out, dim, labels, sources_of(tape, weight, row, bias))
    return out


def _has_own(tape: Tape, weight: Tensor, x: Tensor) -> bool:
    """Whether each part of a width (a head) has a matrix of its own, which leaves with it."""
    for d in range(weight.dim() - 2):
        own = d - weight.dim() + x.dim()
        if weight.shape[d] > 1 and own in varying(tape.labels(x)):
            parts = tape.channels(x, own, "is one part of a width with a matrix of its own")
            tape.label_dim(weight, d, "affine", parts)
            return True
    return False


def _across(
    tape: Tape,
    out: Tensor,
    x: Tensor,
    dim: int,
    weight: Tensor,
    rows: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """A product along another dimension than the one that can shrink: tokens are mixed.

    Every channel is treated alike and passes through. The labels of an activation vary along one
    dimension, so that the places it makes stay.
    """
    found = tape.mark(x)
    tape.partition.fix(rows, "mixes places, not channels")
    if found is None:
        return out
    labels = core(found.labels).narrow(dim, 0, 1).expand(out.shape)
    dims = varying(labels)
    vectors = [core(labels).reshape(-1)] if len(dims) == 1 else []
    macs = out.numel() * x.shape[dim] // prod(v.numel() for v in vectors)
    tape.operator(tape.owner(weight), macs, *vectors)
    added = frozenset[int]()
    if bias is not None:
        added = tape.unscaled(labels, f"the bias of `{tape.owner(weight)}`")
    tape.put(out, labels, found.sources | added, found.zero and bias is None)
    return out


def embedding(call: Call) -> Any:
    """embedding: each column of the table is an output channel."""
    tape, out = call.tape, call.run()
    weight = call.arg(1, "weight")
    tape.fix([call.arg(0, "input")], "used as an index")
    labels = handed_out(tape, weight, 1)
    key = tape.label_dim(weight, 1, "row", labels)
    if key is not None and _counts_up(call.arg(0, "input")):
        tape.labelled_dims[key].table = True
    tape.attribute(tape.owner(weight), "embedding_dim", labels)
    tape.produce(out, -1, labels, tape.scaled_by(key))
    return out


def _counts_up(index: Tensor) -> bool:
    """Whether these are the numbers of places, one after the other: no words are."""
    steps = index[..., 1:] - index[..., :-1] if index.dim() else index
    return steps.shape[-1:] > (1,) and bool((steps == 1).all())


def bag(call: Call) -> Any:
    """embedding_bag."""
    tape, out = call.tape, call.run()
    value = out[0] if isinstance(out, tuple) else out
    weight = call.arg(1, "weight")
    if weight.dim() != 2 or not weight.is_floating_point():  # torch.embedding_bag swaps the two
        weight = call.arg(0, "input")
    labels = handed_out(tape, weight, 1)
    key = tape.label_dim(weight, 1, "row", labels)
    tape.attribute(tape.owner(weight), "embedding_dim", labels)
    tape.produce(value, -1, labels, tape.scaled_by(key))
    return out


LAYERS = {
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "conv_transpose1d": transposed_convolution,
    "conv_transpose2d": transposed_convolution,
    "conv_transpose3d": transposed_convolution,
    "linear": of_values(linear),
    "embedding": embedding,
    "embedding_bag": bag,
}
