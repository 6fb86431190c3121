"""Which model on which data: what the settings name, built and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from decayprune.app.run import data as datasets
from decayprune.app.run import models, own
from decayprune.app.run.batches import seed_all, to_device
from decayprune.app.run.settings import Settings


def read_data(settings: Settings) -> datasets.Data:
    """The data set, or the user's loaders.

    Args:
        settings: Resolved.
    """
    if settings.data:
        return own.data(settings.data, settings.seed)
    folder = Path(settings.data_dir).expanduser()
    return datasets.load(settings.dataset, folder, settings.batch_size or 1, settings.seed)


def fresh_model(settings: Settings, data: datasets.Data) -> nn.Module:
    """The dense model as it is before the first step: the same at every call.

    Args:
        settings: Resolved.
        data: Says how many channels and classes a named model needs.

    Raises:
        ValueError: The name is unknown, or is one of ours beside loaders of the user.
    """
    seed_all(settings.seed)
    name = settings.model or ""
    if ":" in name:
        model = own.model(name)
    elif settings.data:
        raise ValueError(
            f"--data needs a model that fits it: --model pkg.mod:factory; found {name!r}."
        )
    else:
        model = models.build(name, data.in_channels, data.num_classes, data.image_size)
    return model.to(torch.device(settings.device or "cpu"))


def example(settings: Settings, data: datasets.Data, size: int) -> Any:
    """The first test inputs, at most ``size`` of them, as a model takes them.

    Args:
        settings: Resolved.
        data: Whose test split is read.
        size: Examples at most.
    """
    inputs = next(iter(data.test.epoch(0)))[0]
    if isinstance(inputs, dict):
        inputs = {key: value[:size] for key, value in inputs.items()}
    elif isinstance(inputs, (tuple, list)):
        inputs = tuple(value[:size] for value in inputs)
    else:
        inputs = inputs[:size]
    return to_device(inputs, torch.device(settings.device or "cpu"))
