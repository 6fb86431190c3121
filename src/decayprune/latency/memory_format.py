"""The memory format that a model is faster in: contiguous, or channels last for images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from decayprune.structures.example import ExampleInputs, arguments, quiet
from decayprune.structures.ranks import shared
from decayprune.structures.twin import twin

Call = Callable[[], object]


def has_images(example_inputs: ExampleInputs) -> bool:
    """Whether a tensor has the four dimensions that a memory format is about."""
    return any(isinstance(v, Tensor) and v.dim() == 4 for v in tree_leaves(example_inputs))


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


def fastest(
    model: nn.Module, example_inputs: ExampleInputs, ratio: Callable[[Call, Call], float]
) -> tuple[nn.Module, Call, torch.memory_format]:
    """A twin in the format that is faster here, what runs it, and which format that is.

    In a data-parallel run the first process decides.

    Args:
        model: Read only.
        example_inputs: One batch.
        ratio: Time of one call over that of another.
    """
    plain = *in_format(model, example_inputs, torch.contiguous_format), torch.contiguous_format
    if not has_images(example_inputs):
        return plain
    last = *in_format(model, example_inputs, torch.channels_last), torch.channels_last

    def better() -> bool:
        with contextlib.ExitStack() as stack:
            for other in (plain[0], last[0]):
                stack.enter_context(quiet(other))
            return ratio(last[1], plain[1]) < 1

    return last if shared(better) else plain
