"""Layers at widths they do not have: to time one of them alone, as it would be once cut."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Timer = Callable[[Callable[[], object]], float]


def busiest(model: nn.Module, call: Callable[[], object]) -> Layer | None:
    """The plain convolution or linear layer with most multiply-accumulates.

    Args:
        model: Whose layers are looked at.
        call: Runs the model once.
    """
    found: list[tuple[int, Layer]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            per_value = module.weight[0].numel()
            found.append((per_value * output.numel(), module))

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return max(found, key=lambda item: item[0])[1] if found else None


def widths(layer: Layer) -> tuple[int, int]:
    """Channels or features that go in and out."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


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
    if isinstance(narrow, nn.Linear):
        narrow.in_features, narrow.out_features = wide_in, wide_out
    else:
        narrow.in_channels, narrow.out_channels = wide_in, wide_out
        narrow.groups = 1 if plain else wide_in
        if example.dim() == 4 and example.is_contiguous(memory_format=torch.channels_last):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            weight = weight.contiguous(memory_format=torch.channels_last)
    narrow._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    narrow._parameters["bias"] = None
    return narrow, inputs
