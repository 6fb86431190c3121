"""Running a model on its example inputs without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

ExampleInputs = Any
"""A tensor (the only argument), a tuple (positional) or a dict (keyword arguments)."""


def arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call.

    Raises:
        TypeError: Neither a tensor, nor a tuple or list, nor a mapping.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(
        "example_inputs is a tensor, a tuple of positional arguments, or a dict of keyword "
        f"arguments of the model's forward(); found {type(example_inputs).__name__}. Pass one "
        "batch as the model takes it."
    )


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; training flags and random state are put back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), random_state_kept(model):
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Put the random state of the CPU and of the model's devices back."""
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


def outputs(model: nn.Module, example_inputs: ExampleInputs) -> list[Tensor]:
    """Every floating-point tensor the model returns, copied.

    Args:
        model: Run in evaluation mode.
        example_inputs: What to run it on.
    """
    args, kwargs = arguments(example_inputs)
    with quiet(model):
        result = model(*args, **kwargs)
    leaves, _ = tree_flatten(result)
    if not any(isinstance(leaf, Tensor) for leaf in leaves) and hasattr(result, "__dict__"):
        leaves = tree_flatten(vars(result))[0]  # an output object that pytree does not know
    return [
        leaf.clone() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
