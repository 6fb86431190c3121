"""The rule for multi-head attention as one call: whole heads leave, and channels of its inputs.

Queries, keys and values of a head leave together with its columns of the output projection, which
carry it: they scale the function linearly, where scaling a whole head would also flatten its
attention. The module then becomes a
:class:`~decayprune.structures.exact.attention.HeadwiseAttention`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from decayprune.structures.exact.attention import HeadwiseAttention
from decayprune.structures.exact.swap import stand_in
from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.labels import along
from decayprune.structures.tracing.marks import Consumption
from decayprune.structures.tracing.rules.layers import handed_out, sources_of
from decayprune.structures.tracing.rules.products import left_alone
from decayprune.structures.tracing.tape import Tape

_ALONG = "attention reads it along another dimension than its channels"
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def multi_head(call: Call) -> Any:
    """multi_head_attention_forward of a plain nn.MultiheadAttention, and headwise_attention."""
    tape = call.tape
    layer = tape.stack[-1] if tape.stack else ""
    packed, out_weight = call.arg(5, "in_proj_weight"), call.arg(11, "out_proj_weight")
    weights = [call.kwargs.get(name) for name in _SEPARATE] if packed is None else [packed]
    known = stand_in(tape.modules[layer]) is HeadwiseAttention and tape.owner(weights[0]) == layer
    if not known or call.kwargs.get("static_k") is not None:
        return left_alone(call)
    out = call.run()
    inputs = tuple(call.arg(i, n) for i, n in enumerate(("query", "key", "value")))
    count, biases = call.arg(4, "num_heads"), (call.arg(6, "in_proj_bias"),)
    tape.fix([call.kwargs.get("attn_mask"), call.kwargs.get("mask")], "an attention mask")
    tape.fix([call.kwargs.get("key_padding_mask")], "an attention mask")

    heads = _heads(tape, weights, count, out_weight.shape[1])
    rows = heads.repeat_interleave(out_weight.shape[1] // count)
    for weight in weights:
        tape.label_dim(weight, 0, "row", rows if packed is None else rows.repeat(3))
    for bias in biases:
        tape.label_dim(bias, 0, "row", rows.repeat(3))
    _read(tape, layer, inputs, weights, rows)
    positions = inputs[0].numel() // inputs[0].shape[-1]
    products = 2 * positions * inputs[1].shape[0] * out_weight.shape[1] // count
    tape.operator(layer, products, heads)
    tape.attribute(layer, "num_heads", heads)
    _project(tape, call, out[0], rows, positions)
    if out[1] is not None and not call.kwargs.get("average_attn_weights", True):
        tape.put(out[1], along(heads, out[1].dim() - 3, out[1].shape), tape.unscaled(heads), False)
    return out


def _heads(tape: Tape, weights: list[Any], count: int, width: int) -> Tensor:
    """One label per head: new ones, or those of the first call."""
    known = tape.known(weights[0], 0)
    if known is None:
        return tape.partition.fresh(count)
    return known[:width].view(count, -1)[:, 0].contiguous()


def _read(
    tape: Tape, layer: str, inputs: tuple[Tensor, ...], weights: list[Any], rows: Tensor
) -> None:
    """Queries, keys and values consume their inputs: one width where one weight reads them all."""
    reads = weights * 3 if len(weights) == 1 else weights
    for x, weight, size in zip(inputs, reads, ("embed_dim", "kdim", "vdim"), strict=True):
        into = tape.channels(x, -1, _ALONG)
        key = tape.label_dim(weight, 1, "column", into)
        tape.consume(tape.mark(x), into, key)
        tape.operator(layer, x.numel() // x.shape[-1], rows, into)
        tape.attribute(layer, size, into)


def _project(tape: Tape, call: Call, out: Tensor, rows: Tensor, positions: int) -> None:
    """The output projection reads the heads and hands out a width of its own."""
    weight, bias = call.arg(11, "out_proj_weight"), call.arg(12, "out_proj_bias")
    labels = handed_out(tape, weight, 0)
    tape.label_dim(weight, 0, "row", labels)
    tape.label_dim(bias, 0, "row", labels)
    column = tape.label_dim(weight, 1, "column", rows)
    tape.consumptions.append(Consumption(rows, tape.unscaled(rows), column))
    layer = tape.owner(weight)
    tape.operator(layer, positions, labels, rows)
    tape.attribute(layer, "out_features", labels)
    tape.attribute(layer, "in_features", rows)
    tape.produce(out, -1, labels, sources_of(tape, weight, 0, bias))


HEADS = {"multi_head_attention_forward": multi_head, "headwise_attention": multi_head}
