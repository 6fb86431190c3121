"""Rules for recurrent layers and cells: a hidden unit leaves with its rows in every gate.

A unit whose rows and biases are zero computes 0 from a state of 0: the candidate is ``tanh(0)``,
and what an LSTM or a GRU keeps of the state before is half of nothing. So its state stays 0 and
zeros are exact. The integer ``hidden_size`` counts the units of all layers and both directions of a
module, so that units of one number leave all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.marks import Key, Mark
from decayprune.structures.tracing.rules.layers import ALONG_CHANNELS
from decayprune.structures.tracing.rules.products import left_alone
from decayprune.structures.tracing.tape import Tape


def layers(call: Call) -> Any:
    """lstm, gru, rnn_tanh, rnn_relu: all layers and directions of a module in one call."""
    tape, first = call.tape, 1
    if isinstance(call.args[1], Tensor) and not call.args[1].is_floating_point():
        first = 2  # packed: the sizes of the batches come before the state
    x, (state, weights, biased, depth, _, _, both) = call.args[0], call.args[first : first + 7]
    ways = 2 if both else 1
    each = 4 if biased else 2
    if len(weights) != each * depth * ways:
        return left_alone(call, "read by an LSTM that projects its state (prune without proj_size)")
    if not all(tape.is_parameter(weight) for weight in weights):
        return left_alone(call, tape.computed())
    labels, found = _units(tape, weights[1], state), tape.mark(x)
    out = call.run()
    into, inside = tape.channels(x, -1, ALONG_CHANNELS), labels.repeat(ways)
    parts = [weights[i : i + each] for i in range(0, len(weights), each)]
    keys = [key for part in parts for key in _rows(tape, part, labels)]
    hidden = Mark(labels, tape.scaled_by(*keys))
    positions = x.numel() // x.shape[-1]
    for number, part in enumerate(parts):
        read = (found, into) if number < ways else (hidden, inside)
        _columns(tape, part, read, hidden, positions)
    _sizes(tape, weights[0], into, labels)
    result, *states = out
    tape.produce(result, -1, inside, hidden.sources)
    for value in states:
        tape.produce(value, -1, labels, hidden.sources)
    return out


def cell(call: Call) -> Any:
    """lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell: one step."""
    tape, (x, state, *weights) = call.tape, call.args
    weights = [weight for weight in weights if weight is not None]
    if not all(tape.is_parameter(weight) for weight in weights):
        return left_alone(call, tape.computed())
    labels, found = _units(tape, weights[1], state), tape.mark(x)
    out = call.run()
    into = tape.channels(x, -1, ALONG_CHANNELS)
    hidden = Mark(labels, tape.scaled_by(*_rows(tape, weights, labels)))
    _columns(tape, weights, (found, into), hidden, x.numel() // x.shape[-1])
    _sizes(tape, weights[0], into, labels)
    for value in out if isinstance(out, (tuple, list)) else (out,):
        tape.produce(value, -1, labels, hidden.sources)
    return out


def _units(tape: Tape, recurrent: Tensor, state: Any) -> Tensor:
    """Labels of the hidden units: new ones, or those of the first call, and of the first state."""
    labels = tape.known(recurrent, 1)
    if labels is None:
        labels = tape.partition.fresh(recurrent.shape[1])
    for value in state if isinstance(state, (tuple, list)) else (state,):
        found = tape.mark(value)
        if found is None:
            if bool(value.any()):
                tape.partition.fix(labels, "starts from a state of a fixed width")
            continue
        if not found.zero:
            tape.partition.fix(labels, "starts from a state where a unit of zeros is not zero")
        own = tape.channels(value, -1, ALONG_CHANNELS)
        labels = tape.partition.unify(labels, own, "starts from a state of a fixed width")
    return labels


def _rows(tape: Tape, weights: Sequence[Tensor], labels: Tensor) -> list[Key | None]:
    """Rows of all gates, one gate after the other; returns what scales the units."""
    rows = labels.repeat(weights[0].shape[0] // labels.numel())
    return [tape.label_dim(weight, 0, "row", rows) for weight in weights]


def _columns(
    tape: Tape,
    weights: Sequence[Tensor],
    read: tuple[Mark | None, Tensor],
    hidden: Mark,
    positions: int,
) -> None:
    """Columns that read the input, and those that read the state."""
    layer, gates = tape.owner(weights[0]), weights[0].shape[0] // hidden.labels.numel()
    for weight, (found, labels) in zip(weights, (read, (hidden, hidden.labels)), strict=False):
        tape.consume(found, labels, tape.label_dim(weight, 1, "column", labels))
        tape.operator(layer, gates * positions, hidden.labels, labels)


def _sizes(tape: Tape, weight: Tensor, into: Tensor, labels: Tensor) -> None:
    layer = tape.owner(weight)
    tape.attribute(layer, "input_size", into)
    tape.attribute(layer, "hidden_size", labels)


def packed(call: Call) -> Any:
    """pack_padded_sequence: (batch, time, ...) to (positions, ...); pad_packed_sequence: back."""
    tape, value = call.tape, call.args[0]
    found = tape.mark(value)
    out = call.run()
    if found is None:
        return out
    labels, places = found.labels, 2 if call.name == "pack_padded_sequence" else 1
    for dim in range(places):
        labels = tape.partition.collapse(labels, dim, f"`{call.name}` along the width")
    labels = labels[(0,) * places].expand(*out[0].shape[: 3 - places], *value.shape[places:])
    tape.put(out[0], labels, found.sources, found.zero)
    return out


_KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
RECURRENT = {
    **dict.fromkeys(_KINDS, layers),
    **{f"{kind}_cell": cell for kind in _KINDS},
    "pack_padded_sequence": packed,
    "pad_packed_sequence": packed,
}
