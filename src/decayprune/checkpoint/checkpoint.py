"""Portable artefacts: a folder with ``model.safetensors`` and ``structure.json``.

The structure says everything about a compact model but its weights, so loading takes a fresh dense
model, reshapes it, and copies the weights in. Whether they fit is known before the model is
touched.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from decayprune.checkpoint.fields import dtype_name
from decayprune.checkpoint.files import read, write
from decayprune.checkpoint.structure import (
    distinct,
    reshape,
    saved_tensors,
    staying,
    structure,
    unfit,
)
from decayprune.structures.ranks import several

Model = TypeVar("Model", bound=nn.Module)


def save(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a model as ``model.safetensors`` and ``structure.json``.

    In a data-parallel run every rank may call it; the first one writes, the others return at once.

    Args:
        folder: Made if missing; files of the same names are replaced.
        model: Usually compacted; any module of tensors can be saved.

    Raises:
        TypeError: ``model`` is no module.
        OSError: The folder cannot be written; what was there before is untouched.
    """
    _check_module("save", model)
    path = Path(folder)
    parallel = several()
    if parallel and torch.distributed.get_rank() != 0:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"save() writes into a folder, which cannot be made ({error.strerror}); pass another "
            "folder, or make room for this one",
            str(path),
        ) from error
    write(path, distinct(saved_tensors(model))[0], structure(model))


def load(folder: str | os.PathLike[str], model: Model) -> Model:
    """Cut a fresh dense model to the saved shapes and load the saved weights into it.

    Args:
        folder: What :func:`save` wrote.
        model: A dense model of the same architecture; changed in place, on its own device.

    Returns:
        The same model: it computes what the saved one did, bit for bit.

    Raises:
        CheckpointError: A file is missing, damaged or foreign, or the architecture differs; the
            model was not changed.
    """
    _check_module("load", model)
    said, weights = read(Path(folder))
    own = staying(saved_tensors(model), said)
    tensors, tied = distinct(own)
    if tied != said["tied"] and {*tensors, *tied} == {*said["tensors"], *said["tied"]}:
        raise unfit(said, model, "other tensors are shared (tied) than there")
    for name, entry in said["tensors"].items():
        if name in own and dtype_name(own[name]) != entry["dtype"]:
            found = dtype_name(own[name])
            raise unfit(said, model, f"{name} is {entry['dtype']} there and {found} here")
    reshape(model, said)
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return model


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}(folder, model) takes the folder first and then the model, a "
            f"torch.nn.Module; found {type(model).__name__} as the model."
        )
