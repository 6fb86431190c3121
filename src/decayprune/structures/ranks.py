"""Whether several processes work on one thing, and what one of them tells the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

_T = TypeVar("_T")


def several() -> bool:
    """Whether this process belongs to a group of torch.distributed, be it of one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def shared(measure: Callable[[], _T]) -> _T:
    """What the first process measures, in every process of a data-parallel run.

    Args:
        measure: Called in the first process alone.
    """
    if not several():
        return measure()
    box = [measure() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0)
    return cast("_T", box[0])
