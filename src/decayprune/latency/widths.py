"""The widths of a layer, and the layer whose widths matter most."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


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
