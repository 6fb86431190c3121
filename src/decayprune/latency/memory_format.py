"""Memory formats that a model may be faster in: contiguous, or channels last for images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from decayprune.structures.example import ExampleInputs, arguments
from decayprune.structures.twin import twin

Call = Callable[[], object]


def formats(example_inputs: ExampleInputs) -> list[torch.memory_format]:
    """Those that a model may be faster in: one, unless an input has four dimensions.

    Args:
        example_inputs: One batch.
    """
    images = any(isinstance(v, Tensor) and v.dim() == 4 for v in tree_leaves(example_inputs))
    return [torch.contiguous_format, *([torch.channels_last] if images else [])]


def converted(value: Any, memory_format: torch.memory_format) -> Any:
    """A tensor of four dimensions in a memory format; anything else as it is."""
    images = isinstance(value, Tensor) and value.dim() == 4
    return value.contiguous(memory_format=memory_format) if images else value


def in_format(
    model: nn.Module, example_inputs: ExampleInputs, memory_format: torch.memory_format
) -> tuple[nn.Module, Call]:
    """A twin of a model in a memory format, and what runs it.

    Args:
        model: Read only.
        example_inputs: One batch.
        memory_format: Of all weights and inputs with four dimensions.
    """
    convert = partial(converted, memory_format=memory_format)
    args, kwargs = tree_map(convert, arguments(example_inputs))
    other = twin(model)
    for parameter in other.parameters():
        parameter.data = convert(parameter.data)
    return other, partial(other, *args, **kwargs)
