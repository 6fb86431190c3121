"""A finished run becomes a file for another runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from decayprune.app.cli.app import app


def call(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    short = ["--epochs", "1", "--prune-epochs", "1", "--finetune-epochs", "0", "--threads", "1"]
    code, _, err = call("prune", *short, "--out", str(folder))
    assert (code, err) == (0, "")
    return folder


def test_the_file_of_a_run_is_checked_and_timed(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.pt2"
    code, out, _ = call("export", str(run), "--to", str(target), "--batch-size", "2")
    assert code == 0
    assert "takes batches of any size" in out
    assert "differ from the model's by at most" in out
    assert "faster in torch" in out
    program = torch.export.load(target).module()
    assert program(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_without_a_name_it_lies_in_the_folder(run: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the default is an ONNX file")
    folder = shutil.copytree(run, tmp_path / "copy")
    code, out, _ = call("export", str(folder), "--fixed-batch")
    assert code == 0
    assert "takes batches of 1" in out
    assert "faster in onnxruntime" in out
    assert (folder / "model.onnx").stat().st_size > 1000


def test_what_is_wrong_is_one_message(run: Path, tmp_path: Path) -> None:
    code, _, err = call("export", str(run), "--to", str(tmp_path / "m.tflite"))
    assert code == 2
    assert ".onnx, .pt2, .pte" in " ".join(err.split())
    code, _, err = call("export", str(tmp_path / "nowhere"))
    assert code == 2
    assert "Expected the folder of an earlier run" in " ".join(err.split())
