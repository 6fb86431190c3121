"""What adapters work out for their users: a schedule that fits the training, and example inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decayprune.selection.schedule import Schedule


def fitting(schedule: Schedule | None, total_steps: int) -> Schedule:
    """A schedule that ends before the training does.

    Args:
        schedule: The user's own; None for one that fits.
        total_steps: Optimizer steps of the training.

    Raises:
        ValueError: The user's own is longer.
    """
    if schedule is None:
        return Schedule.for_run(total_steps)
    if schedule.stop + schedule.decay_steps > total_steps:
        raise ValueError(
            f"The schedule stops at {schedule.stop} and decays last {schedule.decay_steps} steps, "
            f"but this training has {total_steps} optimizer steps. Expected a schedule that ends "
            "before: Schedule.for_run(total_steps), or leave it out."
        )
    return schedule


def two_examples(loader: Any, callback: str) -> Any:
    """Two examples of the training data, put together as the loader would, without reading on.

    Args:
        loader: A ``DataLoader``.
        callback: Whose ``example_inputs`` to ask for otherwise.

    Raises:
        ValueError: The data is a stream, or there is no such loader.
    """
    data: Any = getattr(loader, "dataset", None)
    together = getattr(loader, "collate_fn", None)
    if together is None or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ValueError(
            "The training data cannot be looked at without reading on: pass "
            f"{callback}(example_inputs=...), what the model is called with."
        )
    with torch.random.fork_rng(devices=[]):
        return together([data[index] for index in range(min(2, len(data)))])


def moved(inputs: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors on a device, those of floating point in a dtype.

    Args:
        inputs: Tensors in any containers.
        device: Where the model is.
        dtype: What the model computes in.
    """

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    return tree_map(one, inputs)
