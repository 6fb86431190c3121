"""What a model reads of the batches that a user has, labels and all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from decayprune.structures.example import ExampleInputs

MOST_BATCHES = 64
OF_A_LOADER = 16
"""Batches of a DataLoader, which would go on for an epoch: a few hundred examples are enough."""


def inputs_from(given: Iterable[Any], example_inputs: ExampleInputs) -> list[ExampleInputs]:
    """The inputs of some batches, each as the model takes them.

    The random state is put back: a loader that shuffles begins the training as it would have.

    Args:
        given: Batches with or without labels: a ``DataLoader``, of which the first 16 are read, or
            any iterable, of which at most 64 are.
        example_inputs: One batch as the model takes it.

    Raises:
        TypeError: It cannot be iterated over, or its items are single examples.
        ValueError: A batch has not what the example has.
    """
    most = OF_A_LOADER if isinstance(given, DataLoader) else MOST_BATCHES
    one = isinstance(given, (Tensor, Mapping, str))
    if one or not (isinstance(given, Iterable) or hasattr(type(given), "__getitem__")):
        raise TypeError(
            "calibrate is a DataLoader or a list of batches, each as the model takes it; found "
            f"{type(given).__name__}. Pass your loader, or a list of one batch: calibrate=[batch]."
        )
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        raise TypeError(
            f"calibrate is a DataLoader or a list of batches; found a {type(given).__name__}, "
            "whose items are single examples. Pass your loader: calibrate=DataLoader(dataset, "
            "batch_size=32, shuffle=True)."
        )
    with torch.random.fork_rng(devices=[]):
        return [inputs_of(batch, example_inputs) for batch in itertools.islice(given, most)]


def inputs_of(batch: Any, example_inputs: ExampleInputs) -> ExampleInputs:
    """The part of a batch that a model is called with, told from an example.

    Of a tuple or list as many leading parts as the example has, of a dictionary all but labels.

    Args:
        batch: As a loader gives it.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        ValueError: It has less than the example.
    """
    if isinstance(batch, Mapping):
        return _without_labels(batch, example_inputs)
    if not isinstance(batch, (tuple, list)):
        return batch
    number = len(example_inputs) if isinstance(example_inputs, (tuple, list)) else 1
    if batch and isinstance(batch[0], Mapping) and number == 1:
        return _without_labels(batch[0], example_inputs)
    if len(batch) < number or isinstance(example_inputs, Mapping):
        wanted = f"{sorted(example_inputs)}" if isinstance(example_inputs, Mapping) else number
        raise ValueError(
            f"example_inputs has {wanted} as arguments of the model, and a batch of calibrate is "
            f"a {type(batch).__name__} of {len(batch)}. Pass batches of the form of example_inputs."
        )
    nested = isinstance(batch[0], (tuple, list)) and _is_pair(example_inputs)
    return tuple((batch[0] if nested and len(batch[0]) >= number else batch)[:number])


def _is_pair(example_inputs: ExampleInputs) -> bool:
    """Whether the model takes several tensors, which a loader may hand over as one tuple."""
    several = isinstance(example_inputs, (tuple, list)) and len(example_inputs) > 1
    return several and isinstance(example_inputs[0], Tensor)


def _without_labels(batch: Mapping[str, Any], example_inputs: ExampleInputs) -> dict[str, Any]:
    known = example_inputs if isinstance(example_inputs, Mapping) else {}
    missing = [name for name in known if name not in batch]
    if missing:
        raise ValueError(
            f"example_inputs has {', '.join(map(repr, missing))}, and a batch of calibrate has "
            f"only {', '.join(map(repr, batch))}. Pass batches of the form of example_inputs."
        )
    return {name: value for name, value in batch.items() if name in known or "label" not in name}
