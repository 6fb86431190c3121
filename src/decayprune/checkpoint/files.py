"""The two files of a checkpoint, ``model.safetensors`` and ``structure.json``: write, and read.

What is read is distrusted: nothing is unpickled, and every field is checked before anybody uses
it. A digest over both files tells a pair that was saved together from one of two different
models, or of one whose bits have changed since: it finds accidents, the checks find lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from decayprune.checkpoint.atomic import check_regular, write_atomically

_FORMAT, _VERSION = "decayprune-structure", 1
_WEIGHTS, _STRUCTURE = "model.safetensors", "structure.json"
_LIMIT = 64 << 20  # bytes of structure.json that we are willing to parse


class CheckpointError(ValueError):
    """A file is missing, damaged, foreign, or does not fit the model."""

    def __init__(self, message: str) -> None:
        # A damaged file may hold names of any length.
        short = f"{message[:400]} ... {message[-400:]}"
        super().__init__(message if len(message) <= len(short) else short)


def write(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    model: str,
    tied: Mapping[str, str],
    modules: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write both files, or neither.

    Args:
        folder: Where.
        weights: Each tensor once.
        model: Name of its class.
        tied: Further names of tensors, each with the one that is in ``weights``.
        modules: Type and sizes of each module, by name.

    Raises:
        OSError: The folder cannot be written; what was there before is untouched.
    """
    structure: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": model,
        "tensors": {
            name: {"shape": list(value.shape), "dtype": dtype_name(value)}
            for name, value in weights.items()
        },
        "tied": tied,
        "modules": modules,
    }

    def write_weights(to: Path) -> None:
        tensors = {n: v.detach().cpu().contiguous() for n, v in weights.items()}
        save_file(tensors, to, {"format": "pt"})
        structure["digest"] = digest(structure, _hash(to))

    def write_structure(to: Path) -> None:
        to.write_bytes(json.dumps(structure, indent=1).encode())

    write_atomically({folder / _WEIGHTS: write_weights, folder / _STRUCTURE: write_structure})


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the structure file says, and the weights.

    Args:
        folder: What :func:`write` wrote.

    Raises:
        CheckpointError: A file is missing, damaged or foreign, or they are no pair.
    """
    structure = _read_structure(folder / _STRUCTURE)
    weights = _read_weights(folder / _WEIGHTS, structure)
    _check_digest(folder, structure)
    return structure, weights


def digest(structure: dict[str, Any], weights: bytes) -> str:
    """SHA-256 of what a structure file says and of the digest of the weights beside it.

    Args:
        structure: Its fields.
        weights: SHA-256 of the other file, as bytes.
    """
    said = {key: value for key, value in structure.items() if key != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode() + weights).hexdigest()


def dtype_name(value: Tensor) -> str:
    """Name of a dtype, as the files have it."""
    return str(value.dtype).removeprefix("torch.")


def is_size(value: object, kind: type = int) -> bool:
    """Whether a value is one size, or (``kind=list``) a list of sizes."""
    if kind is list:
        return isinstance(value, list) and all(is_size(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


# ---------------------------------------------------------------- reading, distrustfully


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return CheckpointError(f"{path} {what}: expected a folder written by decayprune.save().")


def _read_structure(path: Path) -> dict[str, Any]:
    try:
        check_regular(path)  # reading a pipe would wait for ever
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
        elif not (is_size(entry["shape"], list) and isinstance(entry["dtype"], str)):
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
            if not (is_size(value) or is_size(value, list)):
                yield f"{attribute!r} of module {name!r} is not a size"


def _read_weights(path: Path, structure: dict[str, Any]) -> dict[str, Tensor]:
    try:
        check_regular(path)
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
        found = [list(weights[name].shape), dtype_name(weights[name])]
        if found != [entry["shape"], entry["dtype"]]:
            raise CheckpointError(
                f"Tensor {name!r} is {found[1]} {found[0]} in {path.name} and {entry['dtype']} "
                f"{entry['shape']} in {_STRUCTURE}; they do not belong together."
            )
    return weights


def _check_digest(folder: Path, structure: dict[str, Any]) -> None:
    if digest(structure, _hash(folder / _WEIGHTS)) != structure["digest"]:
        raise CheckpointError(
            f"{_WEIGHTS} and {_STRUCTURE} in {folder} should be as they were saved, together; one "
            "of them is from another model, or has changed since. Save the model again."
        )


def _hash(path: Path) -> bytes:
    """SHA-256 of a file, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.digest()
