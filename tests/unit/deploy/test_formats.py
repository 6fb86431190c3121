"""Each format, written and run by its own tool, of networks that lost something everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import decayprune as dp
from cases import CASES
from decayprune.deploy.formats import FORMATS, installed
from decayprune.structures import trace
from decayprune.surgery.undo import Undo
from decayprune.surgery.verified import cut_verified
from reference.cut import zeroed

NETS = [
    "residual",
    "mixing_norms",
    "response_norms",
    "vision_transformer",
    "shifted_windows",
    "attention_sdpa",
]


def smaller(name: str) -> tuple[nn.Module, Any]:
    """A network of the zoo in single precision, without the second structure of every group."""
    model, inputs = CASES[name]()
    structures = trace(model, inputs)
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[group.start + 1 for group in structures.groups]] = True
    model = zeroed(model, structures, set(gone.nonzero().flatten().tolist()))
    cut_verified(Undo(), model, structures, gone, example_inputs=inputs)
    single = tree_map(lambda x: x.float() if x.is_floating_point() else x, inputs)
    return model.float().eval(), single


def needs(ending: str) -> None:
    kind = FORMATS[ending]
    for package in (*kind.writer, kind.runtime):
        pytest.importorskip(package, reason=f"{ending} is written and run by {package}")


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("ending", FORMATS)
def test_a_cut_network_computes_the_same_there(ending: str, name: str, tmp_path: Path) -> None:
    needs(ending)
    model, inputs = smaller(name)
    found = dp.export(model, inputs, tmp_path / f"m{ending}")
    assert found.relative is not None
    assert found.relative < 1e-4
    assert found.batch == (None if FORMATS[ending].any_batch else 2)


def test_normalisers_stay_normalisers(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="reads the file that it is about")
    needs(".onnx")
    model, inputs = smaller("vision_transformer")
    dp.export(model, inputs, tmp_path / "m.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert kinds.count("LayerNormalization") == len(norms) == 5
    assert "ReduceMean" not in kinds


@pytest.mark.parametrize("ending", [".onnx", ".pte", ".xml"])
def test_what_is_missing_is_named(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decayprune.deploy.formats.installed", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed: pip install \w+"):
        dp.export(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / f"m{ending}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_installed() -> None:
    assert installed("torch") == torch.__version__.partition("+")[0]
    assert installed("no-such-package-anywhere") is None


def test_an_onnx_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(".onnx")
    monkeypatch.setattr("decayprune.deploy.formats._ONE_FILE", 8)
    with pytest.raises(dp.ExportError, match=r"less than 2 GiB.*external_data=True"):
        dp.export(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "m.onnx")


def test_openvino_takes_two_files_that_come_together(tmp_path: Path) -> None:
    needs(".xml")
    path, weights = tmp_path / "m.xml", tmp_path / "m.bin"
    found = dp.export(nn.Linear(2, 3), torch.ones(1, 2), path)
    assert found.size == path.stat().st_size + weights.stat().st_size
    old = [file.read_bytes() for file in (path, weights)]
    with pytest.raises(dp.ExportError, match="does not compute what the model computes"):
        dp.export(nn.Linear(200, 3), torch.randn(1, 200), path, tolerance=-1.0)
    assert [file.read_bytes() for file in (path, weights)] == old
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.bin", "m.xml"]
