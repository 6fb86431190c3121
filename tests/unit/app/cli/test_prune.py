"""Every host through the command, in each variant, and stopped and resumed on the way."""

import functools
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import decayprune as dp
from decayprune.app.cli.app import app
from decayprune.app.report import Report
from decayprune.app.run import run
from decayprune.app.run.methods import HOSTS, VARIANTS
from decayprune.app.run.models import MODELS

OWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def block(inputs, outputs):
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

def net():
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*block(1, 24), *block(24, 32), *block(32, 24), *pool, nn.Linear(24, 3))

def loaders():
    images = torch.randn(96, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    scores = torch.stack([images[:, 0, :, i:i + 2].abs().sum((1, 2)) for i in (0, 2, 4)], 1)
    data = TensorDataset(images, scores.argmax(1))
    return DataLoader(data, 4, shuffle=True), DataLoader(data, 48)
"""
# 24 dense steps, 72 in which to prune, 24 to fine-tune in at the least; N is 12.
WORDS = [
    *("--model", "mine:net", "--data", "mine:loaders", "--lr", "0.05", "--threads", "1"),
    *("--epochs", "1", "--prune-epochs", "3", "--finetune-epochs", "1"),
]
FILES = ("model.safetensors", "structure.json", "history.jsonl", "events.jsonl", "norms.jsonl")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    quick = functools.partial(dp.benchmark, runs=1, min_run_ms=0.1)
    monkeypatch.setattr(dp, "benchmark", quick)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    sys.modules.pop("mine", None)


def prune(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["prune", *words], env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("host", HOSTS)
def test_every_host_hits_the_budget_in_the_same_steps(
    host: str, variant: str, folder: Path
) -> None:
    code, out, err = prune(*WORDS, "--host", host, "--variant", variant, "--out", "run")
    assert (code, err) == (0, "")
    assert (f"host {host}, {variant};" in out) == (host != "default")
    report = json.loads((folder / "run" / "report.json").read_text())
    assert (report["host"] or "default", report["variant"]) == (host, variant)
    # One structure of the layer in the middle is 3 % of the MACs.
    assert 0.465 <= report["macs_after"] / report["macs_before"] <= 0.5
    assert report["removed"] == report["decayed"] - report["released"] > 10
    assert (report["released"] > 0) <= (variant == "sp_sr")
    assert report["max_rel_error"] < 1e-5
    shown = Report.read(folder / "run")
    assert shown.finished
    assert shown.trace.last_step == 24 + 72 + 24
    begun = min(event.step for event in shown.events if event.kind == "decay")
    gone = min(event.step for event in shown.events if event.kind == "prune")
    published = host == "hesso" and variant == "alone"  # decays by itself
    assert (gone == begun) == (variant == "alone" and not published)


@pytest.mark.parametrize(
    ("host", "phase"),
    [
        ("hesso", "prune"),
        ("dhspg", "prune"),
        ("depgraph", "prune"),
        ("depgraph-sl", "prune"),
        ("gate-decorator", "prune"),
        ("hesso", "finetune"),
    ],
)
def test_stopped_and_resumed_every_host_ends_the_same_bit_for_bit(
    host: str, phase: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of decays, and after the cut."""
    words = [*WORDS, "--host", host, "--out"]
    assert prune(*words, "whole")[0] == 0
    seen: list[int] = []
    original = run.Run._record

    def interrupting(self: run.Run, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        decays = self.pruner is not None and self.pruner.host.lifecycle.decaying.numel() > 0
        if decays if phase == "prune" else self.phase == phase:
            seen.append(self.step)
        if len(seen) == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run.Run, "_record", interrupting)
    assert prune(*words, "parts")[0] == 130
    monkeypatch.setattr(run.Run, "_record", original)
    assert len(seen) == 4
    torch.manual_seed(1234)  # a new process
    assert prune("--resume", "--out", "parts")[::2] == (0, "")
    for name in FILES:
        assert (folder / "whole" / name).read_bytes() == (folder / "parts" / name).read_bytes()


def test_a_budget_that_a_host_cannot_reach_is_refused_before_training(folder: Path) -> None:
    for host in ("hesso", "dhspg", "gate-decorator"):
        code, _, err = prune(*WORDS, "--host", host, "--budget", "0.0001", "--out", "none")
        assert code == 2
        assert "cannot be reached" in err
    assert not (folder / "none").exists()


def test_rounds_too_short_for_depgraph(folder: Path) -> None:
    words = ["--host", "depgraph", "--rounds", "6", "--decay-steps", "10"]
    code, _, err = prune(*WORDS, *words)
    assert code == 2
    assert "--rounds 6 leaves 10 steps for each, and a round of --host depgraph needs 20" in err
    code, _, _ = prune(*WORDS, "--host", "depgraph", "--rounds", "2", "--out", "two")
    assert code == 0
    assert len(json.loads((folder / "two" / "report.json").read_text())["rounds"]) == 2


TRAINED = """
from mine import *
import torch.nn.functional as F

def smooth(outputs, targets):
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)

def second_is_right(outputs, targets):
    return (outputs.topk(2).indices == targets[:, None]).any(1)

def last_go(structures, parameters):
    return -torch.arange(structures.num_structures, dtype=torch.float)
"""


def test_a_trained_model_with_ones_own_loss_metric_teacher_and_ranking(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it imitates the dense model and resumed, it ends the same."""
    (folder / "more.py").write_text(TRAINED)
    code, _, err = prune(*WORDS[:8], "--epochs", "2", "--prune-epochs", "1", "--out", "dense")
    assert (code, err) == (0, "")
    namespace: dict[str, Any] = {}
    exec(OWN, namespace)
    torch.manual_seed(5)
    torch.save({"state_dict": namespace["net"]().state_dict()}, folder / "w.ckpt")
    words = ["--model", "more:net", "--data", "more:loaders", "--weights", "w.ckpt"]
    words += ["--loss", "more:smooth", "--metric", "more:second_is_right", "--teacher", "dense"]
    words += ["--optimizer", "torch.optim:RMSprop", "--importance", "more:last_go", "--floor"]
    words += ["25%", "--scope", "local", "--variant", "sp_sr"]
    words += ["--prune-epochs", "2", "--finetune-epochs", "1"]
    words += ["--params-budget", "60%", "--ignored-layers", "3", "--threads", "1", "--out"]
    code, out, err = prune(*words, "whole")
    assert (code, err) == (0, "")
    assert "more:net with w.ckpt on more:loaders, to 60% of its parameters" in out
    report = json.loads((folder / "whole" / "report.json").read_text())
    assert (report["metric"], report["judged_on"]) == ("second_is_right", "the test loader")
    assert report["budget"] == {"params": 0.6}
    assert report["settings"]["epochs"] == 0
    assert report["params_after"] <= 0.6 * report["params_before"]
    assert {width["layer"] for width in report["widths"]} == {"0", "6"}
    original = run.Run._record

    def interrupting(self: run.Run, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        if self.step in (9, 55):  # while it decays, and after the cut
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run.Run, "_record", interrupting)
    assert prune(*words, "parts")[0] == 130
    assert prune("--resume", "--out", "parts")[0] == 130
    monkeypatch.setattr(run.Run, "_record", original)
    assert prune("--resume", "--out", "parts")[::2] == (0, "")
    for name in FILES:
        assert (folder / "whole" / name).read_bytes() == (folder / "parts" / name).read_bytes()
    sys.modules.pop("more")


def test_an_untrained_model_that_is_not_trained_first_is_told(folder: Path) -> None:
    (folder / "blind.py").write_text(
        OWN.replace("    return nn.Sequential(", "    return Blind(")
        + """
class Blind(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 0 + torch.tensor([0.0, -1.0, -2.0])
"""
    )
    words = ["--data", "blind:loaders", "--model", "blind:net", "--lr", "0.05", "--epochs", "0"]
    code, out, _ = prune(*words, "--prune-epochs", "1", "--finetune-epochs", "0", "--threads", "1")
    assert code == 0
    assert "no better than guessing, and --epochs is 0: the model is untrained" in out
    sys.modules.pop("blind")


def two_classes(folder: Path) -> None:
    pixels = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(10):
            image = pixels.integers(90 * number, 90 * number + 90, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / "images" / name / f"{i}.png")


def test_weights_of_other_classes_get_a_new_head(folder: Path) -> None:
    two_classes(folder)
    torch.save(MODELS["resnet8"](in_channels=3, num_classes=7).state_dict(), folder / "seven.pt")
    words = ["--data", "images", "--image-size", "8", "--batch-size", "8", "--model", "resnet8"]
    words += ["--weights", "seven.pt", "--prune-epochs", "1", "--finetune-epochs", "1"]
    code, _, err = prune(*words, "--threads", "1")
    assert code == 2
    assert "fc.weight is (7, 64) in the file and (2, 64) in the model" in err
    assert "--new-head draws it anew" in err
    code, out, err = prune(*words, "--new-head", "--threads", "1")
    assert (code, err) == (0, "")
    assert "The dense model has a new head, trained for --epochs 1" in out


def test_a_folder_of_images(folder: Path) -> None:
    two_classes(folder)
    (folder / "run.toml").write_text("data = 'images'\nimage-size = 8\nbatch-size = 8\n")
    words = ["--config", "run.toml", "--model", "resnet8", "--epochs", "1", "--prune-epochs", "2"]
    code, out, err = prune(*words, "--finetune-epochs", "1", "--budget", "60%", "--threads", "1")
    assert (code, err) == (0, "")
    assert "resnet8 on images, to 60% of its MACs" in out
    report = json.loads((folder / "decayprune-out" / "report.json").read_text())
    assert report["judged_on"] == "a held-out fifth"
    assert report["macs_after"] <= 0.6 * report["macs_before"]


def test_without_torch_pruning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    code, _, err = prune(*WORDS, "--host", "depgraph")
    assert code == 2
    assert "pip install 'decayprune[torch-pruning]'" in err


def test_a_run_that_version_0_1_began_is_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings and the options of scripts say torch-pruning and sp+sr."""
    old = ["--host", "torch-pruning", "--variant", "sp+sr", "--out", "run"]
    original = run.Run._record

    def interrupting(self: run.Run, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run.Run, "_record", interrupting)
    assert prune(*WORDS, *old)[0] == 130
    monkeypatch.setattr(run.Run, "_record", original)
    path = folder / "run" / "settings.json"
    settings = json.loads(path.read_text())
    assert (settings["host"], settings["variant"]) == ("depgraph", "sp_sr")
    path.write_text(json.dumps(settings | {"host": "torch-pruning", "variant": "sp+sr"}))
    assert prune("--resume", *old)[::2] == (0, "")
    report = json.loads((folder / "run" / "report.json").read_text())
    assert (report["host"], report["variant"]) == ("depgraph", "sp_sr")
