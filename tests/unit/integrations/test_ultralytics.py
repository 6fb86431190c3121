"""A small YOLO is pruned while ultralytics trains it, and stays pruned in everything after."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())  # it writes settings when imported
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
pytest.importorskip("ultralytics", reason="the adapter is tested against the real framework")

from PIL import Image
from ultralytics import YOLO

import decayprune as dp
from decayprune.integrations.ultralytics import PrunedYOLO, prune

pytestmark = pytest.mark.filterwarnings("ignore")  # the framework's own, many

MODEL = """
nc: 2
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C2f, [16, True]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C2f, [32, True]]
  - [-1, 1, SPPF, [32, 5]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 1, C2f, [32]]
  - [[8, 5], 1, Detect, [nc]]
"""
TRAIN: dict[str, Any] = {
    "imgsz": 32, "batch": 4, "nbs": 4, "workers": 0, "plots": False, "verbose": False,
    "device": "cpu", "exist_ok": True, "optimizer": "SGD", "lr0": 1e-3, "amp": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight images, and a model."""
    folder = tmp_path_factory.mktemp("yolo")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            label = folder / "labels" / split / f"{number}.txt"
            label.write_text(f"{number % 2} 0.5 0.5 0.4 0.4\n")
    names = "names: [red, blue]\n"
    (folder / "data.yaml").write_text(
        f"path: {folder}\ntrain: images/train\nval: images/val\n{names}"
    )
    (folder / "small.yaml").write_text(MODEL)
    return folder


def options(folder: Path, name: str) -> dict[str, Any]:
    return TRAIN | {"data": str(folder / "data.yaml"), "project": str(folder), "name": name}


def shapes(yolo: YOLO) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in yolo.model.state_dict().items()}


@pytest.fixture(scope="module")
def pruned(folder: Path) -> tuple[YOLO, dp.CompactionReport]:
    yolo = YOLO(str(folder / "small.yaml"))
    report = prune(yolo, budget=dp.Budget(macs=0.6), epochs=4, **options(folder, "pruned"))
    return yolo, report


def test_it_is_cut_while_it_trains(pruned: tuple[YOLO, dp.CompactionReport]) -> None:
    yolo, report = pruned
    assert report.macs_after <= 0.6 * report.macs_before
    assert sum(p.numel() for p in yolo.model.parameters()) == report.params_after
    trainer = yolo.trainer
    average, model = trainer.ema.ema.state_dict(), trainer.model.state_dict()
    assert {n: v.shape for n, v in average.items()} == {n: v.shape for n, v in model.items()}
    assert type(yolo) is PrunedYOLO


def test_the_average_goes_on_after_the_cut(pruned: tuple[YOLO, dp.CompactionReport]) -> None:
    trainer = pruned[0].trainer
    before = {n: v.clone() for n, v in trainer.ema.ema.state_dict().items()}
    updates = trainer.ema.updates
    trainer.ema.update(trainer.model)
    share = trainer.ema.decay(updates + 1)
    for name, value in trainer.model.state_dict().items():
        if value.is_floating_point():
            expected = share * before[name] + (1 - share) * value
            torch.testing.assert_close(trainer.ema.ema.state_dict()[name], expected)


def test_images_of_the_training_calibrate_it(folder: Path) -> None:
    yolo = YOLO(str(folder / "small.yaml"))
    report = prune(
        yolo,
        budget=dp.Budget(macs=0.6),
        pruning={"calibrate": 2},
        epochs=2,
        **options(folder, "calibrated"),
    )
    assert report.macs_after <= 0.6 * report.macs_before
    pruner = yolo.trainer.pruner
    assert pruner.schedule == dp.Schedule.at_once()
    assert {event.step for event in pruner.events} == {1}


def test_a_pruned_file_stays_pruned_when_it_is_trained(
    folder: Path, pruned: tuple[YOLO, dp.CompactionReport]
) -> None:
    best = folder / "pruned" / "weights" / "best.pt"
    again = PrunedYOLO(str(best))
    wanted = shapes(again)
    assert wanted == shapes(pruned[0])
    again.train(epochs=1, **options(folder, "again"))
    assert shapes(again) == wanted
    assert shapes(YOLO(str(folder / "again" / "weights" / "last.pt"))) == wanted
    (folder / "three.yaml").write_text(
        (folder / "data.yaml").read_text().replace("[red, blue]", "[red, blue, green]")
    )
    three = options(folder, "three") | {"data": str(folder / "three.yaml")}
    with pytest.raises(ValueError, match="tells 2 classes apart, and the data set has 3"):
        PrunedYOLO(str(best)).train(epochs=1, **three)


def test_plain_ultralytics_predicts_and_exports_it(
    folder: Path, pruned: tuple[YOLO, dp.CompactionReport]
) -> None:
    yolo = YOLO(str(folder / "pruned" / "weights" / "best.pt"))
    image = torch.rand(1, 3, 32, 32)
    expected = yolo.model.eval()(image)[0]
    for block in yolo.model.modules():
        if hasattr(block, "forward_split"):
            assert block.c * 2 == block.cv1.conv.out_channels
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported file")
    pytest.importorskip("onnx", reason="writes the exported file")
    file = yolo.export(format="onnx", imgsz=32, simplify=False, dynamic=False)
    session = onnxruntime.InferenceSession(file)
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)


def test_a_dense_file_is_trained_as_ever(folder: Path) -> None:
    yolo = PrunedYOLO(str(folder / "small.yaml"))
    yolo.train(epochs=1, **options(folder, "dense"))
    assert shapes(yolo) == shapes(YOLO(str(folder / "small.yaml")))


def test_what_it_cannot_do_is_told_before_anything_is_trained(folder: Path) -> None:
    yolo = YOLO(str(folder / "small.yaml"))
    budget = dp.Budget(macs=0.6)
    with pytest.raises(TypeError, match=r"takes an ultralytics\.YOLO; found Linear"):
        prune(torch.nn.Linear(2, 2), budget=budget)  # type: ignore[arg-type]
    for name, value in (("time", 1), ("resume", True)):
        with pytest.raises(ValueError, match=f"cannot train with {name}="):
            prune(yolo, budget=budget, **{name: value})
    with pytest.raises(ValueError, match="one data set; found several"):
        prune(yolo, budget=budget, data=["a.yaml", "b.yaml"])
    trainer = PrunedYOLO(str(folder / "small.yaml")).task_map["detect"]["trainer"]
    with pytest.raises(ValueError, match="on one device; found 2"):
        trainer.train(SimpleNamespace(world_size=2))
    late = dp.Schedule(stop=50, decay_steps=5)
    with pytest.raises(ValueError, match=r"stops at 50 .* 2 epochs have 4 optimizer steps"):
        prune(yolo, budget=budget, schedule=late, epochs=2, **options(folder, "late"))


def test_what_is_given_to_the_pruner(folder: Path) -> None:
    def faintest(structures: Any, parameters: dict[str, Tensor]) -> Tensor:
        return torch.arange(structures.num_structures, dtype=torch.float32)

    yolo = YOLO(str(folder / "small.yaml"))
    prune(
        yolo,
        budget=dp.Budget(macs=0.8),
        pruning={"importance": faintest, "rectify": None},
        epochs=4,
        **options(folder, "given") | {"nbs": 8},
    )
    assert yolo.trainer.accumulate == 2
    assert yolo.trainer.report is not None


def test_an_interrupted_run_goes_on_after_the_cut(folder: Path) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(trainer: Any) -> None:
        if trainer.report is not None:
            raise Interrupt

    yolo = YOLO(str(folder / "small.yaml"))
    yolo.add_callback("on_model_save", interrupt)
    with pytest.raises(Interrupt):
        prune(yolo, budget=dp.Budget(macs=0.6), epochs=4, **options(folder, "stopped"))
    again = PrunedYOLO(str(folder / "stopped" / "weights" / "last.pt"))
    wanted = shapes(again)
    assert wanted != shapes(yolo)
    again.train(resume=True)
    assert again.trainer.epoch == 3
    assert shapes(again) == wanted
