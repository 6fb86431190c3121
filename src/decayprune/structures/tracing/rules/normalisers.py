"""Rules for normalisers and what else has a factor for each channel.

They carry the labels of the width that they normalise. One that mixes channels is listed: where it
can count those that are gone, it does (:mod:`decayprune.structures.exact.norms`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.labels import along, varying
from decayprune.structures.tracing.marks import Mark
from decayprune.structures.tracing.rules.elementwise import of_values
from decayprune.structures.tracing.rules.layers import ALONG_CHANNELS, tie_groups
from decayprune.structures.tracing.tape import Tape


def batch_norm(call: Call) -> Any:
    """batch_norm and instance_norm: every channel by itself."""
    tape, out = call.tape, call.run()
    x = call.arg(0, "input")
    mean, variance = call.arg(1, "running_mean"), call.arg(2, "running_var")
    weight, bias = call.arg(3, "weight"), call.arg(4, "bias")
    dim = 0 if call.name == "instance_norm" and x.dim() == 2 else 1
    _per_channel(tape, x, out, dim, (weight, bias), (mean, variance))
    return out


def _per_channel(
    tape: Tape,
    x: Tensor,
    out: Tensor,
    dim: int,
    affine: tuple[Tensor | None, Tensor | None],
    buffers: tuple[Tensor | None, ...] = (),
) -> None:
    """A normaliser that treats every channel by itself."""
    found = tape.mark(x)
    if found is None:
        return
    labels = tape.channels(x, dim, ALONG_CHANNELS)
    for value in buffers:
        if value is not None and tape.name(value) is not None:
            tape.label_dim(value, 0, "buffer", labels)
    keys = [tape.label_dim(value, 0, "affine", labels) for value in affine]
    known = [value for value in (*affine, *buffers) if value is not None]
    layer = tape.owner(known[0] if known else None)
    tape.attribute(layer, "num_features", labels)
    has_affine = any(key is not None for key in keys)
    sources = tape.scaled_by(*keys) if has_affine else tape.unscaled(labels)
    shifts = any(value is not None for value in buffers)  # by the running mean, in eval mode
    tape.put(out, along(labels, dim, out.shape), sources, has_affine or (found.zero and not shifts))


def layer_norm(call: Call) -> Any:
    """layer_norm and rms_norm over the last dimensions: mixes the channels it normalises."""
    tape, out = call.tape, call.run()
    x, shape = call.arg(0, "input"), call.arg(1, "normalized_shape")
    affine = (call.arg(2, "weight"), call.arg(3, "bias") if call.name == "layer_norm" else None)
    first = x.dim() - len(tuple(shape))
    found = tape.mark(x)
    if found is None:
        return out
    inside = [d for d in varying(found.labels) if d >= first]
    if inside == [x.dim() - 1] == varying(found.labels) and len(tuple(shape)) == 1:
        _mixing(tape, x, out, x.dim() - 1, affine, "normalized_shape", call.name != "rms_norm")
        return out
    labels = found.labels
    for d in inside:
        labels = tape.partition.collapse(labels, d, f"mixed by {_kind(tape, call)}")
    tape.put(out, labels, tape.unscaled(labels), False)
    return out


def group_norm(call: Call) -> Any:
    """group_norm: like a batch norm with one channel per group, mixing with more."""
    tape, out = call.tape, call.run()
    x, groups = call.arg(0, "input"), call.arg(1, "num_groups")
    weight, bias = call.arg(2, "weight"), call.arg(3, "bias")
    if tape.mark(x) is None:
        return out
    if groups == x.shape[1]:
        tape.readings.read(groups, tape.labels(x), 1)
        _per_channel(tape, x, out, 1, (weight, bias))
        labels = tape.channels(x, 1, ALONG_CHANNELS)
        tape.attribute(tape.owner(weight), "num_groups", labels)
        tape.attribute(tape.owner(weight), "num_channels", labels)
    else:
        tie_groups(tape, tape.channels(x, 1, ALONG_CHANNELS), groups)
        _mixing(tape, x, out, 1, (weight, bias), "num_channels")
    return out


def counting_layer_norm(call: Call) -> Any:
    """Layer norms and RMS norms in words of their own, and those of a model cut before."""
    tape, out, x = call.tape, call.run(), call.arg(0, "x")
    centred = call.name == "counting_layer_norm"
    affine = call.arg(2, "weight"), call.arg(3, "bias") if centred else None
    dim, found = call.arg(5 if centred else 4, "dim", -1) % x.dim(), tape.mark(x)
    if found is None:
        return out
    if varying(found.labels) == [dim]:
        _mixing(tape, x, out, dim, affine, "normalized_shape", centred)
        return out
    labels = tape.partition.collapse(found.labels, dim, f"mixed by {_kind(tape, call)}")
    tape.put(out, labels, tape.unscaled(labels), False)
    return out


def counting_group_norm(call: Call) -> Any:
    """The group norm of a model that was cut before."""
    tape, out, x = call.tape, call.run(), call.arg(0, "x")
    if tape.mark(x) is not None:
        tie_groups(tape, tape.channels(x, 1, ALONG_CHANNELS), call.arg(1, "groups"))
        _mixing(tape, x, out, 1, (call.arg(3, "weight"), call.arg(4, "bias")), "num_channels")
    return out


def counting_response_norm(call: Call) -> Any:
    """Response norms of any class: the input goes on beside what is made of it.

    Its weight scales only a part of what comes out, so nothing of it carries. A channel of zeros
    is its shift, which leaves with the channel.
    """
    tape, out, x = call.tape, call.run(), call.arg(0, "x")
    found = tape.mark(x)
    if found is None:
        return out
    dim = 1 if call.arg(5, "channels_first", False) else x.dim() - 1
    if varying(found.labels) != [dim]:
        labels = tape.partition.collapse(found.labels, dim, "mixed by a response norm")
        tape.put(out, labels, tape.unscaled(labels), False)
        return out
    labels = tape.channels(x, dim, ALONG_CHANNELS)
    affine = call.arg(2, "weight"), call.arg(3, "bias")
    layer = tape.owner(affine[0])
    _counts_zeros(tape, found, labels, layer)
    tape.attribute(layer, "normalized_shape", labels)
    for value in affine:
        tape.label_dim(value, _longest(value), "affine", labels)
    sources = _scaling(tape, found) | tape.unscaled(labels)
    tape.put(out, along(labels, dim, out.shape), sources, found.zero)
    return out


def _kind(tape: Tape, call: Call) -> str:
    return "RMSNorm" if "rms" in call.name else "LayerNorm"


def _mixing(
    tape: Tape,
    x: Tensor,
    out: Tensor,
    dim: int,
    affine: tuple[Tensor | None, Tensor | None],
    attribute: str,
    shifts: bool = True,
) -> None:
    """A normaliser that mixes the channels it normalises: listed in :attr:`Tape.mixed`.

    What scales its input carries as well as its own affine: the latter alone would leave the
    channel's share of the mean and variance, which would then go with a jolt. Where the mean is
    subtracted (``shifts``), a channel of zeros has a gradient.
    """
    found, labels = tape.mark(x), tape.channels(x, dim, ALONG_CHANNELS)
    layer = tape.owner(affine[0])
    _counts_zeros(tape, found, labels, layer)
    keys = [tape.label_dim(value, _longest(value), "affine", labels) for value in affine]
    tape.attribute(layer, attribute, labels)
    has_affine = any(key is not None for key in keys)
    sources = _scaling(tape, found) | (
        tape.scaled_by(*keys) if has_affine else tape.unscaled(labels)
    )
    if shifts:
        tape.unpinned.append(labels)
    zero = has_affine or (not shifts and found is not None and found.zero)
    tape.put(out, along(labels, dim, out.shape), sources, zero)


def _scaling(tape: Tape, found: Mark | None) -> frozenset[int]:
    """Of what is known to reach a normaliser, the parameters that scale it."""
    before = frozenset[int]() if found is None else found.sources
    return frozenset(source for source in before if tape.has_scale(frozenset([source])))


def _counts_zeros(tape: Tape, found: Mark | None, labels: Tensor, layer: str) -> None:
    """List a normaliser that counts channels which have left as zeros: they have to be zeros."""
    tape.mixed.append((labels, layer))
    sources = frozenset[int]() if found is None or found.zero else found.sources
    if moved := dict.fromkeys(tape.moved[s] for s in sorted(sources) if s in tape.moved):
        reason = f"channels of zeros get {' and '.join(moved)} before `{layer}` takes their mean"
        tape.partition.fix(labels, f"{reason}; without that they could leave")


def _longest(value: Tensor | None) -> int:
    """The dimension of a vector that may have others of size 1: (channels, 1, 1)."""
    return 0 if value is None else max(range(value.dim()), key=value.shape.__getitem__)


def prelu(call: Call) -> Any:
    """prelu: one slope, or one per channel."""
    tape, out = call.tape, call.run()
    x, weight = call.arg(0, "input"), call.arg(1, "weight")
    found = tape.mark(x)
    if found is None:
        return out
    labels = found.labels
    if weight.numel() > 1:
        slopes = tape.channels(x, 1, ALONG_CHANNELS)
        tape.label_dim(weight, 0, "affine", slopes)
        tape.attribute(tape.owner(weight), "num_parameters", slopes)
        labels = along(slopes, 1, x.shape)
    tape.put(out, labels, found.sources, found.zero)
    return out


NORMALISERS = {
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": of_values(layer_norm),
    "rms_norm": of_values(layer_norm),
    "group_norm": of_values(group_norm),
    "counting_layer_norm": of_values(counting_layer_norm),
    "counting_rms_norm": of_values(counting_layer_norm),
    "counting_group_norm": counting_group_norm,
    "counting_response_norm": of_values(counting_response_norm),
    "prelu": prelu,
}
