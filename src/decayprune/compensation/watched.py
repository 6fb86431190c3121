"""Looking on while layers read: a hook on each, and a detour through torch's own attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from decayprune.compensation.consumers import Consumer

OnRead = Callable[[Consumer, Tensor], Tensor | None]
"""Told what a layer reads; what it returns is read instead, unless it is None."""


@contextmanager
def watched(model: nn.Module, readers: Iterable[Consumer], on_read: OnRead) -> Iterator[None]:
    """Look on while a model runs.

    Args:
        model: As it was, afterwards.
        readers: Layers of it.
        on_read: Called before each of them is, with the first of its arguments, a tensor.
    """
    with ExitStack() as stack:
        for reader in readers:
            hook = reader.layer.register_forward_pre_hook(_hook(reader, on_read))
            stack.enter_context(hook)
            around = model.get_submodule(reader.name.rpartition(".")[0])
            if _hands_on_weights(around):
                stack.enter_context(_calling(around))
        yield


def _hook(reader: Consumer, on_read: OnRead) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not inputs or not isinstance(inputs[0], Tensor):  # by name, or sequences that are packed
            return None
        instead = on_read(reader, inputs[0])
        return None if instead is None else (instead, *inputs[1:])

    return hook


def _hands_on_weights(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether it is torch's attention, which hands the weights of its last layer to a function."""
    usual = type(module).forward is nn.MultiheadAttention.forward
    return usual and "forward" not in vars(module)


@contextmanager
def _calling(attention: nn.MultiheadAttention) -> Iterator[None]:
    """Have torch's attention call its last layer: the function is given the identity instead."""
    whole, last = attention.forward, attention.out_proj
    identity = nn.Module()

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        weight = last.weight
        width = weight.shape[1]
        identity.weight = torch.eye(width, dtype=weight.dtype, device=weight.device)
        identity.bias = None if last.bias is None else weight.new_zeros(width)
        attention._modules["out_proj"] = identity
        try:
            mixed, weights = whole(*args, **kwargs)
        finally:
            attention._modules["out_proj"] = last
        return last(mixed), weights

    vars(attention)["forward"] = forward
    try:
        yield
    finally:
        del vars(attention)["forward"]
