"""Rules for movement with a pattern of its own: windows, pixel and channel shuffles.

Several channels make up one, or one becomes several; those leave together.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.labels import along
from decayprune.structures.tracing.rules.places import moved
from decayprune.structures.tracing.tape import Tape


def _one_each(tape: Tape, channels: Tensor, reason: str) -> Tensor:
    """Tie the labels of each row to each other; one of each row."""
    tape.partition.unify(channels, channels[:, :1].expand(channels.shape), reason)
    return channels[:, 0].contiguous()


def pixel_shuffle(call: Call) -> Any:
    """pixel_shuffle: the channels that make up one output channel leave together."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    factor = call.arg(1, "upscale_factor")
    channels = tape.channels(x, -3, "pixel_shuffle across a width").reshape(-1, factor * factor)
    vector = _one_each(tape, channels, "pixel_shuffle beside a fixed width")
    tape.put(out, along(vector, x.dim() - 3, out.shape), found.sources, found.zero)
    return out


def unfold(call: Call) -> Any:
    """F.unfold: each channel becomes as many as its window has places; x.unfold: windows."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    if out.dim() == x.dim() + 1:  # x.unfold(dimension, size, step)
        dim = call.arg(1, "dimension") % x.dim()
        labels = tape.partition.collapse(found.labels, dim, "unfold along the width")
        labels = labels.unsqueeze(-1)
        tape.put(out, labels.narrow(dim, 0, 1).expand(out.shape), found.sources, found.zero)
        return out
    channels = tape.channels(x, -3, "unfold across a width")
    vector = channels.repeat_interleave(out.shape[-2] // channels.numel())
    tape.put(out, along(vector, out.dim() - 2, out.shape), found.sources, found.zero)
    return out


def fold(call: Call) -> Any:
    """F.fold: the inverse of F.unfold; the places of a window leave together."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    channels = tape.channels(x, -2, "fold across a width").reshape(out.shape[-3], -1)
    vector = _one_each(tape, channels, "fold beside a fixed width")
    tape.put(out, along(vector, out.dim() - 3, out.shape), found.sources, found.zero)
    return out


def channel_shuffle(call: Call) -> Any:
    """channel_shuffle: every group loses the same offsets."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    rows = tape.channels(x, 1, "channel_shuffle across a width").view(call.arg(1, "groups"), -1)
    _one_each(tape, rows.t(), "channel_shuffle beside a fixed width")
    vector = rows.t().reshape(-1)
    tape.put(out, along(vector, 1, out.shape), found.sources, found.zero)
    return out


WINDOWS = {
    "pixel_shuffle": pixel_shuffle,
    "unfold": unfold,
    "fold": fold,
    "channel_shuffle": channel_shuffle,
}
