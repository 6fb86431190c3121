"""Rules for operators of torchvision: regions of a feature map, deformable convolutions."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from decayprune.structures.tracing.call import Call, tensors_in
from decayprune.structures.tracing.labels import along
from decayprune.structures.tracing.rules.layers import (
    handed_out,
    producer,
    sources_of,
    tie_groups,
)


def regions(call: Call) -> Any:
    """roi_align, roi_pool: each channel of each region by itself."""
    tape, out, x = call.tape, call.run(), call.arg(0, "input")
    tape.fix([call.arg(1, "rois")], "used as coordinates")
    found = tape.mark(x)
    if found is None:
        return out
    labels = tape.channels(x, 1, f"{call.name} reads channels along dimension 1")
    for value in tensors_in(out):
        if value.is_floating_point():
            tape.put(value, along(labels, 1, value.shape), found.sources, found.zero)
    return out


def deformable(call: Call) -> Any:
    """deform_conv2d: a convolution that reads where other layers tell it to."""
    tape, out = call.tape, call.run()
    x, weight = call.arg(0, "input"), call.arg(1, "weight")
    offset, mask, bias = call.args[2:5]
    groups, offset_groups = call.args[11:13]
    tape.fix((offset, mask), "used as coordinates")
    bias = _real(bias)
    into = tape.channels(x, 1, "deform_conv2d reads channels along dimension 1")
    labels = handed_out(tape, weight, 0)
    for count in {groups, offset_groups} - {1}:
        into = tie_groups(tape, into, count)
    labels = tie_groups(tape, labels, groups) if groups > 1 else labels
    column = into[: weight.shape[1]]
    producer(tape, weight, bias, (0, labels), (1, column), x)
    layer = tape.owner(weight)
    tape.attribute(layer, "out_channels", labels)
    tape.attribute(layer, "in_channels", into)
    positions = out.numel() // weight.shape[0] * prod(weight.shape[2:])
    tape.operator(layer, positions, labels, column)
    tape.produce(out, 1, labels, sources_of(tape, weight, 0, bias))
    return out


def _real(bias: Tensor) -> Tensor | None:
    """The bias, None where torchvision made zeros in place of none."""
    return bias if bias.requires_grad or bool(bias.any()) else None


VISION = {
    **dict.fromkeys(["roi_align", "roi_pool"], regions),
    "deform_conv2d": deformable,
}
