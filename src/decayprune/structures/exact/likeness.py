"""Whether two modules compute the same but for the values of their parameters."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

_OF_EVERY = frozenset(vars(nn.Module())) - {"training"}  # hooks, and what is looked at by itself


def likeness(module: nn.Module) -> Hashable | None:
    """A key that modules share whose code, attributes, parts and shapes are the same.

    Args:
        module: Any; its hooks are not looked at.

    Returns:
        None where too little can be said: it holds a buffer, what is no plain value, or layers
            with parameters of their own.
    """
    if isinstance(module, torch.jit.ScriptModule) or module._buffers:
        return None
    if any(part._parameters for part in module._modules.values() if part is not None):
        return None
    own = {n: _plain(value) for n, value in vars(module).items() if n not in _OF_EVERY}
    parts = {n: likeness(part) for n, part in module._modules.items() if part is not None}
    if None in own.values() or None in parts.values():
        return None
    shapes = ((n, p if p is None else (p.shape, p.dtype)) for n, p in module._parameters.items())
    kind = type(module)
    return kind, kind.forward, tuple(own.items()), tuple(parts.items()), tuple(shapes)


def _plain(value: Any) -> Hashable | None:
    """A key of numbers and words; None of anything else."""
    if isinstance(value, (tuple, list)):
        items = tuple(map(_plain, value))
        return None if None in items else items
    if isinstance(value, (bool, float, str)) or value is None:
        return type(value), value
    # Plain: what an integer of a traced model is compared with, it notes.
    return (int, int(value)) if isinstance(value, int) else None
