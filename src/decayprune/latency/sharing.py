"""Measurements that all processes of a data-parallel run decide by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

from decayprune.structures.ranks import several

_T = TypeVar("_T")


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
