"""What the fields of a structure may be; one that comes from elsewhere is distrusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

FORMAT, VERSION = "decayprune-structure", 1


class CheckpointError(ValueError):
    """A file or a structure is missing, damaged, foreign, or does not fit the model."""

    def __init__(self, message: str) -> None:
        # A damaged file may hold names of any length.
        short = f"{message[:400]} ... {message[-400:]}"
        super().__init__(message if len(message) <= len(short) else short)


def check(structure: Any, what: str, source: str, remedy: str) -> None:
    """Raise unless every field of a structure is of its kind.

    Args:
        structure: Anything.
        what: What to call it in a message.
        source: What should have written it.
        remedy: What to do, as a sentence.

    Raises:
        CheckpointError: It is something else; says what.
    """
    if not isinstance(structure, dict) or structure.get("format") != FORMAT:
        raise CheckpointError(f"{what} was not written by {source}.")
    if structure.get("version") != VERSION:
        raise CheckpointError(
            f"{what} has version {structure.get('version')!r}, this decayprune reads version "
            f"{VERSION}; use the decayprune that wrote it, or a newer one."
        )
    for problem in _problems(structure):
        raise CheckpointError(f"{what} is damaged: {problem}. {remedy}")


def dtype_name(value: Tensor) -> str:
    """Name of a dtype, as the files have it."""
    return str(value.dtype).removeprefix("torch.")


def is_size(value: object, kind: type = int) -> bool:
    """Whether a value is one size, or (``kind=list``) a list of sizes."""
    if kind is list:
        return isinstance(value, list) and all(is_size(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def _problems(structure: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the fields of a structure, in words."""
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
    yield from _buffer_problems(structure.get("buffers", {}))
    yield from _bypass_problems(structure.get("bypassed", {}))


def _module_problems(modules: dict[str, Any]) -> Iterator[str]:
    for name, entry in modules.items():
        if not (isinstance(entry, dict) and isinstance(entry.get("type"), str)):
            yield f"the entry of module {name!r} has no type"
            continue
        sizes = {attribute: value for attribute, value in entry.items() if attribute != "type"}
        for attribute, value in sizes.items():
            if not (is_size(value) or is_size(value, list)):
                yield f"{attribute!r} of module {name!r} is not a size"


def _bypass_problems(bypassed: Any) -> Iterator[str]:
    if not isinstance(bypassed, dict):
        yield "'bypassed' is not an object"
        return
    for name, entry in bypassed.items():
        known = isinstance(entry, dict) and set(entry) == {"type", "zero", "items"}
        if not known or not isinstance(entry["type"], str):
            yield f"the entry of bypassed module {name!r} is not a type, zero and items"
        elif not (is_size(entry["zero"]) and is_size(entry["items"]) and entry["items"] < 100):
            yield f"'zero' or 'items' of bypassed module {name!r} is no small number"


def _buffer_problems(buffers: Any) -> Iterator[str]:
    if not isinstance(buffers, dict):
        yield "'buffers' is not an object"
        return
    for name, cuts in buffers.items():
        pairs = isinstance(cuts, list) and all(isinstance(c, list) and len(c) == 2 for c in cuts)
        if not pairs or not all(is_size(dim) and is_size(index, list) for dim, index in cuts):
            yield f"the entry of buffer {name!r} is not a list of dimensions with their indices"
