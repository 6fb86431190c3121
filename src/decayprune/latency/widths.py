"""Which widths suit this machine: small measurements of one layer at many widths.

Processors work on channels in blocks. A width between two blocks costs as much as the next whole
one, so a cut to any odd width saves less time than multiply-accumulates. How large a block is
depends on processor, library and memory format, so it is measured, not guessed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

UNITS = (1, 4, 8, 16, 32)
"""Multiples that are tried."""

_ENOUGH = 0.97  # of the best speed: below it, coarser widths are worth their lost precision
_SHARE = 0.6  # widths are tried around this share of the dense one

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Timer = Callable[[Callable[[], object]], float]


def busiest(model: nn.Module, call: Callable[[], object]) -> tuple[Layer, Tensor] | None:
    """The plain convolution or linear layer with most multiply-accumulates, and its input.

    Args:
        model: Whose layers are looked at.
        call: Runs the model once.
    """
    found: list[tuple[int, Layer, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            per_value = module.weight[0].numel()
            found.append((per_value * output.numel(), module, args[0].detach()))

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return max(found, key=lambda item: item[0])[1:] if found else None


def round_to(layer: Layer, example: Tensor, timer: Timer) -> int:
    """The smallest of :data:`UNITS` whose multiples lose no speed per multiply-accumulate.

    Args:
        layer: A layer of the dense model.
        example: Its input.
        timer: Takes a function without arguments, gives the time of one call.
    """
    speed = {}
    for unit in UNITS:
        wide_in, wide_out = (_near(width, unit) for width in widths(layer))
        narrow, inputs = resized(layer, example, wide_in, wide_out)
        speed[unit] = wide_in * wide_out / timer(partial(narrow, inputs))
    best = max(speed.values())
    return next(unit for unit in UNITS if speed[unit] >= _ENOUGH * best)


def widths(layer: Layer) -> tuple[int, int]:
    """Channels or features that go in and out."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _near(width: int, unit: int) -> int:
    """A width that is a multiple of the unit and just past one of the largest: its worst case."""
    return int(width * _SHARE) // UNITS[-1] * UNITS[-1] + unit


def resized(layer: Layer, example: Tensor, wide_in: int, wide_out: int) -> tuple[Layer, Tensor]:
    """The same layer at other widths, and an input for it; depthwise stays depthwise.

    Args:
        layer: A linear layer, or a convolution that is plain or depthwise; not changed.
        example: Its input.
        wide_in: Width of the new input.
        wide_out: Width of the new output.
    """
    plain = getattr(layer, "groups", 1) == 1
    dim = -1 if isinstance(layer, nn.Linear) else 1
    index = torch.arange(wide_in, device=example.device) % example.shape[dim]
    inputs = example.index_select(dim, index)
    narrow = copy.copy(layer)
    narrow._parameters = dict(layer._parameters)
    # No random numbers: a run must not depend on whether something was timed.
    weight = layer.weight.new_full(
        (wide_out, wide_in if plain else 1, *layer.weight.shape[2:]), 0.1
    )
    if not isinstance(narrow, nn.Linear):
        narrow.in_channels, narrow.out_channels = wide_in, wide_out
        narrow.groups = 1 if plain else wide_in
        if example.dim() == 4 and example.is_contiguous(memory_format=torch.channels_last):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            weight = weight.contiguous(memory_format=torch.channels_last)
    narrow._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    narrow._parameters["bias"] = None
    return narrow, inputs
