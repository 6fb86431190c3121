"""The two files say what was written, and no more is believed of them than was checked."""

from __future__ import annotations

import hashlib
import json
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
