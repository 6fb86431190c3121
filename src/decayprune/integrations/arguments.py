"""What adapters work out for their users: a schedule, example inputs, batches to calibrate on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decayprune.selection.schedule import Schedule

_BATCH = 32  # examples of a batch, where a loader does not say


def fitting(schedule: Schedule | None, total_steps: int, *, calibrated: bool = False) -> Schedule:
    """A schedule that ends before the training does.

    Args:
        schedule: The user's own; None for one that fits.
        total_steps: Optimizer steps of the training.
        calibrated: Whether structures are chosen on data: they are cut at once then.

    Raises:
        ValueError: The user's own is longer.
    """
    if schedule is None:
        return Schedule.at_once() if calibrated else Schedule.for_run(total_steps)
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
    return next(
        _collated(loader, f"{callback}(example_inputs=...), what the model is called with", 2)
    )


def calibrating(
    options: Mapping[str, Any], loader: Any, callback: str, weight: Tensor
) -> dict[str, Any]:
    """Options whose ``calibrate``, if it is a number, has become so many batches of the data.

    They are drawn at random, as large as those of the training, and the training still begins as it
    would have.

    Args:
        options: Of a :class:`~decayprune.DecayPruner`.
        loader: The ``DataLoader`` of the training.
        callback: Whose ``calibrate`` to ask for otherwise.
        weight: Of the model, for the device and dtype of what it reads.

    Raises:
        ValueError: The number is not positive, or the data cannot be looked at.
    """
    number = options.get("calibrate")
    if isinstance(number, bool) or not isinstance(number, int):
        return dict(options)
    if number < 1:
        raise ValueError(
            f"calibrate is a number of batches of the training data, such as 16; found {number}."
        )
    instead = f"{callback}(calibrate=[...]), a list of batches"
    sampler = getattr(loader, "batch_sampler", None)  # accelerate's loaders leave the rest unsaid
    sizes = (getattr(one, "batch_size", None) for one in (loader, sampler))
    size = next(filter(None, sizes), _BATCH)
    order = torch.Generator("cpu").manual_seed(0)
    drawn = itertools.islice(_collated(loader, instead, size, order), number)
    return {**options, "calibrate": [moved(batch, weight.device, weight.dtype) for batch in drawn]}


def _collated(
    loader: Any, instead: str, size: int, order: torch.Generator | None = None
) -> Iterator[Any]:
    """Batches of the data of a loader, put together as it would, the first examples first."""
    data: Any = getattr(loader, "dataset", None)
    together = getattr(loader, "collate_fn", None)
    if together is None or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ValueError(
            f"The training data cannot be looked at without reading on: pass {instead}."
        )
    number = len(data)
    indices: Sequence[int] = range(number)
    if order is not None:
        indices = torch.randperm(number, generator=order, device="cpu").tolist()
    for begin in range(0, number, size):
        with torch.random.fork_rng(devices=[]):
            batch = together([data[index] for index in indices[begin : begin + size]])
        yield batch


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
