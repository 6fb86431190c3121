"""Portable artefacts: a folder with ``model.safetensors`` and ``structure.json``.

The shapes and a few integer attributes of its layers say everything about a compact model, so
loading takes a fresh dense model, cuts it to those shapes, and copies the weights in. Whether they
fit is known before the model is touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from decayprune.checkpoint.files import CheckpointError, dtype_name, is_size, read, write
from decayprune.structures.exact.swap import STAND_INS, become_all, counted_width
from decayprune.structures.exact.window_attention import HeadwiseWindowAttention
from decayprune.structures.twin import named_tensors

_ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._NormBase: ("num_features",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape",),
    nn.PReLU: ("num_parameters",),
    nn.Embedding: ("embedding_dim",),
    HeadwiseWindowAttention: ("num_heads", "dim"),
    nn.MultiheadAttention: ("embed_dim", "kdim", "vdim", "num_heads", "head_dim"),
}

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
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
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
    tensors, tied = _distinct(_saved_tensors(model))
    modules = {
        name: {"type": _type(module)} | attributes
        for name, module in model.named_modules()
        if (attributes := _attributes(module))
    }
    write(path, tensors, model=type(model).__qualname__, tied=tied, modules=modules)


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
    structure, weights = read(Path(folder))
    plan = _fit(structure, model)
    own = _saved_tensors(model)
    become_all(model, _losers(plan))
    with torch.no_grad():
        for name, value in weights.items():
            target = own[name]
            if target.shape != value.shape:
                target.grad = None
                target.data = torch.empty(value.shape, dtype=target.dtype, device=target.device)
            target.copy_(value)
    for module, attribute, value in plan:
        setattr(module, attribute, value)
    return model


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}(folder, model) takes the folder first and then the model, a "
            f"torch.nn.Module; found {type(model).__name__} as the model."
        )


def _losers(plan: list[tuple[nn.Module, str, Any]]) -> set[nn.Module]:
    """Modules that have to become their stand-ins, because they lose channels or heads."""
    return {
        module
        for module, attribute, value in plan
        if attribute == "counted"
        or (isinstance(module, nn.MultiheadAttention) and getattr(module, attribute) != value)
    }


# ---------------------------------------------------------------- what is saved


def _saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, by every name they have."""
    tensors = named_tensors(model)
    return {name: tensors[name] for name in model.state_dict(keep_vars=True) if name in tensors}


def _distinct(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names of tied ones."""
    first: dict[int, str] = {}
    tied = {}
    for name, value in tensors.items():
        if id(value) in first:
            tied[name] = first[id(value)]
        else:
            first[id(value)] = name
    return {name: tensors[name] for name in first.values()}, tied


def _type(module: nn.Module) -> str:
    """Name of a module's class, or of the one that the dense model has in its place."""
    replaced = module.replaced if isinstance(module, STAND_INS) else None
    return type(module).__qualname__ if replaced is None else str(replaced)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Integer attributes that a cut may have changed."""
    names = [n for kind, ns in _ATTRIBUTES.items() if isinstance(module, kind) for n in ns]
    if isinstance(module, STAND_INS):
        names += ["counted"]  # an attention has none
    elif not type(module).__module__.startswith("torch.nn."):
        # The user's own module may count anything: heads, channels of a split.
        own = {name for name, value in vars(module).items() if type(value) is int}
        names += sorted(own - {*names, "type"})
    found: dict[str, int | list[int]] = {}
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, tuple) and all(isinstance(v, int) for v in value):
            found[name] = list(value)
        elif isinstance(value, int) and is_size(value):
            found[name] = value
    return found


# ---------------------------------------------------------------- whether it fits


def _fit(structure: dict[str, Any], model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Attributes to set, once everything was found to fit; raises before anything changes."""

    def unfit(what: str) -> CheckpointError:
        return CheckpointError(
            f"The saved model does not fit this {type(model).__qualname__}: {what}. Pass a fresh "
            f"dense model of the architecture that was saved ({structure.get('model')})."
        )

    tensors, tied = _distinct(_saved_tensors(model))
    entries = structure["tensors"]
    if set(tensors) != set(entries) or tied != structure["tied"]:
        here, there = {*tensors, *tied}, {*entries, *structure["tied"]}
        odd = sorted(here ^ there)
        sides = ("the file", "this one") if odd and odd[0] in there else ("this one", "the file")
        raise unfit(
            f"{sides[0]} has a tensor {odd[0]!r}, {sides[1]} has not"
            if odd
            else "other tensors are shared (tied) than there"
        )
    for name, entry in entries.items():
        own, saved = list(tensors[name].shape), entry["shape"]
        if len(own) != len(saved) or any(s > o for s, o in zip(saved, own, strict=True)):
            raise unfit(f"{name} is {saved} there and {own} here")
        if dtype_name(tensors[name]) != entry["dtype"]:
            raise unfit(f"{name} is {entry['dtype']} there and {dtype_name(tensors[name])} here")
    return [
        (module, attribute, tuple(value) if isinstance(value, list) else value)
        for module, attribute, value in _attributes_to_set(structure, model, unfit)
    ]


def _attributes_to_set(
    structure: dict[str, Any], model: nn.Module, unfit: Callable[[str], CheckpointError]
) -> Iterator[tuple[nn.Module, str, Any]]:
    modules = dict(model.named_modules())
    for name, entry in structure["modules"].items():
        module = modules.get(name)
        if module is None or _type(module) != entry["type"]:
            raise unfit(f"module {name!r} is no {entry['type']} here")
        known = _attributes(module)
        for attribute, value in entry.items():
            if attribute == "type":
                continue
            if attribute == "counted":
                if counted_width(module) != value:
                    raise unfit(f"{name!r} counts {value} channels there, not so here")
            elif attribute in ("normalized_shape", "dim") and "counted" in entry:
                pass  # a module of another library has no such attribute before
            elif attribute not in known or type(known[attribute]) is not type(value):
                raise unfit(f"module {name!r} has no attribute {attribute!r} here")
            yield module, attribute, value
