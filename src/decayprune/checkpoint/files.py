"""The two files of a checkpoint, ``model.safetensors`` and ``structure.json``: write, and read.

What is read is distrusted: nothing is unpickled, and every field is checked before anybody uses
it. A digest over both files tells a pair that was saved together from one of two different
models, or of one whose bits have changed since: it finds accidents, the checks find lies.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from decayprune.checkpoint.atomic import check_regular, write_atomically
from decayprune.checkpoint.fields import CheckpointError, check, dtype_name

_WEIGHTS, _STRUCTURE = "model.safetensors", "structure.json"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors names them."""
_LIMIT = 64 << 20  # bytes of structure.json that we are willing to parse


def write(folder: Path, weights: Mapping[str, Tensor], structure: Mapping[str, Any]) -> None:
    """Write both files, or neither.

    Args:
        folder: Where.
        weights: Each tensor once.
        structure: What the model has besides them.

    Raises:
        OSError: The folder cannot be written; what was there before is untouched.
    """
    structure = dict(structure)

    def write_weights(to: Path) -> None:
        _write_weights(to, weights)
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


# ---------------------------------------------------------------- writing, a tensor at a time


def _write_weights(to: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of which no more than one tensor is in memory a second time.

    ``safetensors.torch.save_file`` wants all of them on the CPU, contiguous: twice the model where
    it is on a GPU, or has its channels last. The format is eight bytes of length, a header of JSON,
    and the numbers, little-endian (https://huggingface.co/docs/safetensors).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # The widest first, so that all are aligned.
    order = sorted(weights, key=lambda name: (-weights[name].element_size(), name))
    end = 0
    for name in order:
        value, begin = weights[name], end
        if value.dtype not in _DTYPES:
            raise ValueError(
                f"safetensors files hold no {dtype_name(value)}, and {name!r} is one. Cast it, or "
                "leave it out of the state dict (a buffer with persistent=False)."
            )
        end += value.numel() * value.element_size()
        dtype, shape = _DTYPES[value.dtype], list(value.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with to.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(_numbers(weights[name]))


def _numbers(value: Tensor) -> memoryview:
    plain = value.detach().cpu().contiguous().reshape(-1)
    if sys.byteorder == "big":
        each = plain.real.element_size()  # the parts of a complex number are numbers of their own
        plain = plain.view(torch.uint8).view(-1, each).flip(1).reshape(-1)
    return plain.view(torch.uint8).numpy().data


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
    check(structure, str(path), "decayprune.save()", "Save the model again.")
    if not isinstance(structure.get("digest"), str):
        raise CheckpointError(f"{path} is damaged: it holds no digest. Save the model again.")
    found: dict[str, Any] = structure
    return found


def _read_weights(path: Path, structure: dict[str, Any]) -> dict[str, Tensor]:
    try:
        check_regular(path)
        # Old safetensors make tensors on the default device, which may be "meta".
        with torch.device("cpu"), safe_open(path, framework="pt") as file:
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
