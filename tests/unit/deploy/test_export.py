"""Files are checked against the model, whatever the batch, and what is wrong is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from decayprune.deploy import export as module
from decayprune.deploy import formats
from decayprune.latency.hardware import known, units

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


class Named(nn.Module):
    """Two inputs by name, one of them no batch; a dict of outputs, one of them integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, ids: Tensor, scale: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.embed(ids) * scale
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1)
        logits = self.head(hidden.mean(1))
        return {"logits": logits, "label": logits.argmax(-1), "hidden": hidden}


class CountsRows(nn.Module):
    """Reads the size of its batch as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([row * 2 for row in x.unbind(0)]))


def test_a_file_takes_any_batch(tmp_path: Path) -> None:
    net = Net()
    found = dp.export(net, X, tmp_path / "m.pt2")
    assert net.training
    assert found.batch is None
    assert found.error is not None
    assert found.error < 1e-6
    program = torch.export.load(tmp_path / "m.pt2").module()
    net.eval()
    for size in (1, 2, 5):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(program(x), net(x))
    assert "takes batches of any size" in str(found)
    assert found.size == (tmp_path / "m.pt2").stat().st_size
    assert found.to_dict()["format"] == "torch.export"


def test_inputs_by_name(tmp_path: Path) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    inputs = {"ids": ids, "mask": torch.ones(2, 3), "scale": torch.ones(6)}
    found = dp.export(Named(), inputs, tmp_path / "m.pt2")
    assert found.batch is None
    assert found.error == 0


def test_a_batch_of_one_size(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(dp.ExportError, match=r"pass dynamic_batch=False"):
        dp.export(CountsRows(), x, tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []
    found = dp.export(CountsRows(), x, tmp_path / "m.pt2", dynamic_batch=False)
    assert found.batch == 3
    assert "batches of 3" in str(found)


def test_a_model_that_cannot_be_followed(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(dp.ExportError, match=r"cannot follow the model: .*values of tensors"):
        dp.export(Branches(), X, tmp_path / "m.pt2")


def test_a_wrong_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "m.pt2"
    old.write_bytes(b"old")

    def wrong(path: Path) -> Any:
        return lambda example: [torch.full((example.shape[0], 4), 7.0)]

    kind = formats.FORMATS[".pt2"]
    monkeypatch.setitem(
        module.FORMATS, ".pt2", formats.Format(kind.name, (), kind.runtime, kind.write, wrong)
    )
    with pytest.raises(dp.ExportError, match=r"does not compute what the model computes.*kept"):
        dp.export(Net(), X, old)
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]
    assert dp.export(Net(), X, old, tolerance=1e9).error is not None


def test_a_file_that_does_not_run_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> Any:
        return lambda example: []

    kind = formats.FORMATS[".pt2"]
    monkeypatch.setitem(
        module.FORMATS, ".pt2", formats.Format(kind.name, (), kind.runtime, kind.write, broken)
    )
    with pytest.raises(dp.ExportError, match=r"does not run on a batch of 1"):
        dp.export(Net(), X, tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


def test_without_the_runtime_nothing_is_checked_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed", lambda package: None)
    found = dp.export(Net(), X, tmp_path / "m.pt2", dense=Net(16))
    assert found.error is None
    assert found.ms is None
    assert "not checked: torch is not installed" in str(found)


def test_timed_beside_the_dense_model(tmp_path: Path) -> None:
    found = dp.export(Net(), X, tmp_path / "m.pt2", dense=Net(64))
    assert found.ms is not None
    assert found.dense_ms is not None
    assert f"{found.dense_ms / found.ms:.2f}x faster in torch" in str(found)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end in \.onnx, \.pt2, \.pte, \.xml; found 'm\.tflite'"):
        dp.export(Net(), X, tmp_path / "m.tflite")
    with pytest.raises(TypeError, match="tensor that has a batch"):
        dp.export(Net(), (3,), tmp_path / "m.pt2")
    with pytest.raises(FileNotFoundError):
        dp.export(Net(), X, tmp_path / "nowhere" / "m.pt2")


# torch 2.6 warns of constants that it lifts itself.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.filterwarnings("ignore:Node lifted_tensor:UserWarning")
def test_a_first_dimension_that_is_no_batch(tmp_path: Path) -> None:
    class Messages(nn.Module):
        def forward(self, nodes: Tensor) -> Tensor:
            return nodes.index_add(0, torch.tensor([0]), nodes[torch.tensor([2])])

    x = torch.randn(3, 4)
    with pytest.raises(dp.ExportError, match=r"itself does not run on a batch of 1.*=False"):
        dp.export(Messages(), x, tmp_path / "m.pt2")
    assert dp.export(Messages(), x, tmp_path / "m.pt2", dynamic_batch=False).error == 0


def needs_onnxruntime() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="a model is timed there")


def test_a_model_runs_in_onnxruntime_and_stays_as_it_is() -> None:
    needs_onnxruntime()
    net = Net().train()
    (found,) = module.in_onnxruntime(net, X)()
    assert net.training
    assert torch.allclose(found, net.eval()(X), atol=1e-5)


def test_onnxruntime_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "installed", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install onnx onnxscript onnxruntime"):
        module.in_onnxruntime(Net(), X)


class TestBudget:
    """``Budget(latency=...)`` with ``target="onnxruntime"``."""

    schedule = dp.Schedule(stop=0, decay_steps=1)

    def pruner(self, model: nn.Module, budget: dp.Budget, target: str) -> dp.DecayPruner:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return dp.DecayPruner(
            model, optimizer, X, budget=budget, schedule=self.schedule, target=target
        )

    def test_it_is_measured_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        needs_onnxruntime()
        runs: list[Any] = []

        def here(model: nn.Module, inputs: Any) -> Any:
            runs.append(module.in_onnxruntime(model, inputs))
            return runs[-1]

        monkeypatch.setattr("decayprune.deploy.target.in_onnxruntime", here)
        pruner = self.pruner(Net(64), dp.Budget(latency=0.9), "onnxruntime")
        assert len(runs) >= 3  # the dense model, a narrow one, and what the budget led to
        assert 0 < pruner.remaining()["latency"] <= 1

    def test_a_model_that_cannot_go_there_is_refused(self) -> None:
        needs_onnxruntime()

        class Stubborn(Net):
            def forward(self, x: Tensor) -> Tensor:
                found: Tensor = super().forward(x)
                return found + float(found.sum() > 1e9)

        with pytest.raises(dp.ExportError, match="cannot follow the model"):
            self.pruner(Stubborn(), dp.Budget(latency=0.5), "onnxruntime")

    def test_widths_are_those_that_are_fast_there(self) -> None:
        """Unless told: onnxruntime takes long for channels that do not fill its blocks."""
        pruner = self.pruner(Net(64), dp.Budget(macs=0.5), "onnxruntime")
        assert pruner._units == units(known("onnxruntime"), pruner.structures)
