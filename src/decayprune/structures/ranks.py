"""Whether several processes work on one thing, and what one of them tells the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

_T = TypeVar("_T")


def several() -> bool:
    """Whether this process belongs to a group of torch.distributed, be it of one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def shared(measure: Callable[[], _T]) -> _T:
    """What the first process measures, in every process of a data-parallel run.

    Args:
        measure: Called in the first process alone.

    Raises:
        Exception: What ``measure`` raises.
        RuntimeError: It has raised that in the first process: nobody waits for what never comes.
    """
    if not several():
        return measure()
    box: list[object] = [None, None]  # what was found, or why nothing was
    failure: Exception | None = None
    if torch.distributed.get_rank() == 0:
        try:
            box[0] = measure()
        except Exception as error:
            failure, box[1] = error, f"{type(error).__name__}: {error}"
    torch.distributed.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise RuntimeError(
            f"The first process of this data-parallel run failed, so the others stop: {box[1]}"
        )
    return cast("_T", box[0])


def gathered(value: _T) -> list[_T]:
    """What every process of a data-parallel run has found, in the order of their ranks.

    Args:
        value: What this process has found.
    """
    if not several():
        return [value]
    everybody: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, value)
    return everybody


def averaged(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes of a data-parallel run, the same in each.

    Args:
        values: What this process has found.
    """
    return torch.stack(gathered(values)).mean(0) if several() else values
