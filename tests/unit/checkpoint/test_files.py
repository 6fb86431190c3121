"""The two files say what was written, and no more is believed of them than was checked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from decayprune.checkpoint import files
from decayprune.checkpoint.fields import CheckpointError

WEIGHTS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.count": torch.tensor(7),
    "half": torch.ones(2, dtype=torch.bfloat16),
}
STRUCTURE: dict[str, Any] = {
    "format": "decayprune-structure",
    "version": 1,
    "model": "Toy",
    "tensors": {
        "a.weight": {"shape": [2, 3], "dtype": "float32"},
        "a.count": {"shape": [], "dtype": "int64"},
        "half": {"shape": [2], "dtype": "bfloat16"},
    },
    "tied": {"b.weight": "a.weight"},
    "modules": {"a": {"type": "Linear", "in_features": 3}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files.write(tmp_path, WEIGHTS, STRUCTURE)
    return tmp_path


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    structure, weights = files.read(folder)
    assert {key: structure[key] for key in STRUCTURE} == STRUCTURE
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], value) for name, value in WEIGHTS.items())


def test_a_view_with_a_gradient_is_written_as_its_values(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    files.write(tmp_path, {"w": weight.T}, STRUCTURE)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], weight.T)


@pytest.mark.parametrize("dtype", sorted(files._DTYPES, key=str), ids=str)
def test_every_dtype_is_read_as_safetensors_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    version = importlib.metadata.version("safetensors")
    newer = (torch.complex64, torch.uint16, torch.uint32, torch.uint64)
    if dtype in newer and tuple(map(int, version.split(".")[:2])) < (0, 7):
        pytest.skip(f"safetensors {version} reads no {dtype}")
    values = {
        "plain": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype),
        "apart": torch.tensor([[[[1, 0]], [[0, 1]]]]).to(dtype).transpose(1, 3),
        "one": torch.tensor(1).to(dtype),
        "none": torch.zeros(0, 3, dtype=dtype),
        "odd": torch.ones(3, dtype=torch.uint8),
    }
    files.write(tmp_path, values, STRUCTURE)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert found[name].tolist() == value.tolist()


def test_a_machine_whose_bytes_are_the_other_way_round_turns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = torch.tensor([1, 258], dtype=torch.int16)
    monkeypatch.setattr(sys, "byteorder", "big")
    files.write(tmp_path, {"w": value}, STRUCTURE)
    monkeypatch.undo()
    # This machine is the usual way round: what was turned reads turned.
    assert load_file(tmp_path / "model.safetensors")["w"].tolist() == [256, 513]


def test_a_dtype_that_the_format_has_not_is_named(tmp_path: Path) -> None:
    weights = {"w": torch.zeros(2, dtype=torch.complex128)}
    with pytest.raises(ValueError, match="hold no complex128, and 'w' is one"):
        files.write(tmp_path, weights, STRUCTURE)
    assert not list(tmp_path.iterdir())


def test_no_more_than_a_tensor_is_in_memory_twice(tmp_path: Path) -> None:
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("only Linux tells a process its highest use of memory, and forgets it")

    def highest() -> int:
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) << 10

    last = torch.channels_last
    weights = {f"{i}": torch.ones(512, 256, 4, 4).to(memory_format=last) for i in range(32)}
    size = sum(value.nbytes for value in weights.values())  # 256 MiB
    clear.write_text("5")
    before = highest()
    files.write(tmp_path, weights, STRUCTURE)
    assert highest() - before < size / 3


def test_the_digest_is_that_of_the_docstring(folder: Path) -> None:
    structure = json.loads((folder / "structure.json").read_text())
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    said = {key: value for key, value in structure.items() if key != "digest"}
    text = json.dumps(said, sort_keys=True).encode()
    assert structure["digest"] == hashlib.sha256(text + weights).hexdigest()
    assert files.digest(structure, weights) == structure["digest"]
    assert files.digest({**structure, "model": "Other"}, weights) != structure["digest"]
    assert files.digest(structure, b"other") != structure["digest"]


def test_files_of_two_saves_of_the_same_shapes_are_no_pair(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    files.write(folder, {name: value + 1 for name, value in WEIGHTS.items()}, STRUCTURE)
    files.read(folder)
    (folder / "model.safetensors").write_bytes(before)
    with pytest.raises(CheckpointError, match="as they were saved, together"):
        files.read(folder)
