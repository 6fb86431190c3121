"""Portable artefacts: a folder with ``model.safetensors`` and ``structure.json``.

The shapes and a few integer attributes of its layers say everything about a compact model, so
loading takes a fresh dense model, cuts it to those shapes, and copies the weights in. Nothing is
pickled or unpickled, every field of a file is checked before the model is touched, and files are
written beside their final name and renamed, so that a full disk or a crash loses nothing. A digest
over both files tells a pair that was saved together from one of two different models, or of one
whose bits have changed since: it finds accidents, the checks find lies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from decayprune.cutting import named_tensors
from decayprune.files import write_atomically
from decayprune.structures.standins import STAND_INS, become_all, counted_width
from decayprune.structures.windows import HeadwiseWindowAttention

_FORMAT, _VERSION = "decayprune-structure", 1
_WEIGHTS, _STRUCTURE = "model.safetensors", "structure.json"
_LIMIT = 64 << 20  # bytes of structure.json that we are willing to parse

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


class CheckpointError(ValueError):
    """A file is missing, damaged, foreign, or does not fit the model."""

    def __init__(self, message: str) -> None:
        # A damaged file may hold names of any length.
        short = f"{message[:400]} ... {message[-400:]}"
        super().__init__(message if len(message) <= len(short) else short)


def save(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a model as ``model.safetensors`` and ``structure.json``.

    Args:
        folder: Made if missing; files of the same names are replaced.
        model: Usually compacted; any module of tensors can be saved.

    Raises:
        TypeError: ``model`` is no module.
        OSError: The folder cannot be written; what was there before is untouched.
    """
    _check_module("save", model)
    path = Path(folder)
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
    structure = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": type(model).__qualname__,
        "tensors": {
            name: {"shape": list(value.shape), "dtype": _dtype(value)}
            for name, value in tensors.items()
        },
        "tied": tied,
        "modules": {
            name: {"type": _type(module)} | attributes
            for name, module in model.named_modules()
            if (attributes := _attributes(module))
        },
    }
    weights = {n: v.detach().cpu().contiguous() for n, v in tensors.items()}
    content = serialise(weights, {"format": "pt"})
    structure["digest"] = _digest(structure, hashlib.sha256(content).digest())
    write_atomically(
        {
            path / _WEIGHTS: lambda to: to.write_bytes(content),
            path / _STRUCTURE: lambda to: to.write_bytes(json.dumps(structure, indent=1).encode()),
        }
    )


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
    structure = _read_structure(Path(folder) / _STRUCTURE)
    weights = _read_weights(Path(folder) / _WEIGHTS, structure)
    _check_digest(Path(folder), structure)
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


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


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
        elif isinstance(value, int) and _is_size(value):
            found[name] = value
    return found


def _digest(structure: dict[str, Any], weights: bytes) -> str:
    """SHA-256 of what a structure file says and of the digest of the weights beside it."""
    said = {key: value for key, value in structure.items() if key != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode() + weights).hexdigest()


# ---------------------------------------------------------------- reading, distrustfully


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return CheckpointError(f"{path} {what}: expected a folder written by decayprune.save().")


def _read_structure(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError("it is larger than any structure file")
        structure = json.loads(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); save the model again."
        ) from None
    if not isinstance(structure, dict) or structure.get("format") != _FORMAT:
        raise CheckpointError(f"{path} was not written by decayprune.save().")
    if structure.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has version {structure.get('version')!r}, this decayprune reads version "
            f"{_VERSION}; use the decayprune that wrote it, or a newer one."
        )
    _check_fields(path, structure)
    return structure


def _check_fields(path: Path, structure: dict[str, Any]) -> None:
    for what in _problems(structure):
        raise CheckpointError(f"{path} is damaged: {what}. Save the model again.")


def _problems(structure: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the fields of a structure file, in words."""
    absent = [k for k in ("tensors", "tied", "modules") if not isinstance(structure.get(k), dict)]
    if absent:
        yield f"{absent[0]!r} is not an object"
        return
    tensors = structure["tensors"]
    for name, entry in tensors.items():
        if not (isinstance(entry, dict) and set(entry) == {"shape", "dtype"}):
            yield f"the entry of tensor {name!r} is not a shape and a dtype"
        elif not (_is_size(entry["shape"], list) and isinstance(entry["dtype"], str)):
            yield f"the shape or dtype of tensor {name!r} is none"
    for name, other in structure["tied"].items():
        if name in tensors or not isinstance(other, str) or other not in tensors:
            yield f"tensor {name!r} is tied to nothing"
    yield from _module_problems(structure["modules"])
    if not isinstance(structure.get("digest"), str):
        yield "it holds no digest"


def _module_problems(modules: dict[str, Any]) -> Iterator[str]:
    for name, entry in modules.items():
        if not (isinstance(entry, dict) and isinstance(entry.get("type"), str)):
            yield f"the entry of module {name!r} has no type"
            continue
        sizes = {attribute: value for attribute, value in entry.items() if attribute != "type"}
        for attribute, value in sizes.items():
            if not (_is_size(value) or _is_size(value, list)):
                yield f"{attribute!r} of module {name!r} is not a size"


def _is_size(value: object, kind: type = int) -> bool:
    """Whether a value is one size, or (``kind=list``) a list of sizes."""
    if kind is list:
        return isinstance(value, list) and all(_is_size(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def _read_weights(path: Path, structure: dict[str, Any]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise _unreadable(path, error) from None
    except (SafetensorError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); save the model again.") from None
    if set(weights) != set(structure["tensors"]):
        odd = sorted(set(weights) ^ set(structure["tensors"]))
        raise CheckpointError(
            f"{path} and {_STRUCTURE} beside it hold different tensors (such as {odd[0]!r}); they "
            "do not belong together."
        )
    for name, entry in structure["tensors"].items():
        found = [list(weights[name].shape), _dtype(weights[name])]
        if found != [entry["shape"], entry["dtype"]]:
            raise CheckpointError(
                f"Tensor {name!r} is {found[1]} {found[0]} in {path.name} and {entry['dtype']} "
                f"{entry['shape']} in {_STRUCTURE}; they do not belong together."
            )
    return weights


def _check_digest(folder: Path, structure: dict[str, Any]) -> None:
    weights = hashlib.sha256()
    with (folder / _WEIGHTS).open("rb") as file:
        while block := file.read(1 << 20):
            weights.update(block)
    if _digest(structure, weights.digest()) != structure["digest"]:
        raise CheckpointError(
            f"{_WEIGHTS} and {_STRUCTURE} in {folder} should be as they were saved, together; one "
            "of them is from another model, or has changed since. Save the model again."
        )


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
        if _dtype(tensors[name]) != entry["dtype"]:
            raise unfit(f"{name} is {entry['dtype']} there and {_dtype(tensors[name])} here")
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
