import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import decayprune as dp
from decayprune.app.report import Report
from decayprune.app.run import methods, own, subject
from decayprune.app.run.batches import LoaderBatches, MemoryBatches
from decayprune.app.run.data import Data
from decayprune.app.run.run import Interrupted, Run
from decayprune.app.run.runfolder import RunFolder
from decayprune.app.run.settings import Settings
from decayprune.latency.estimate import LatencyModel

FILES = ("model.safetensors", "structure.json", "history.jsonl", "events.jsonl", "norms.jsonl")


class Watch:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.ticks = 0
        self.notes: list[str] = []

    def phase(self, name: str, total: int, done: int) -> None:
        self.phases.append(name)

    def tick(self, note: str = "") -> None:
        self.ticks += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


class Killed(BaseException):
    pass


class Killer(Watch):
    """Ends the run when it is told something for so many times."""

    def __init__(self, kill_at: int) -> None:
        super().__init__()
        self.kill_at = kill_at

    def tick(self, note: str = "") -> None:
        super().tick(note)
        if self.ticks == self.kill_at:
            raise Killed


class Net(nn.Module):
    """Draws dropout, so that resuming has to get random numbers right as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 16, 24)
        self.dropout = nn.Dropout(0.2)
        self.fc2 = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x))).flatten(1)
        return self.fc2(self.dropout(torch.relu(self.fc1(x))))


@pytest.fixture(params=["memory", "loader"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Sixty images, batches of ten: six steps an epoch, 42 in all."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    targets = images.flatten(1).float().mean(1).argsort().argsort() // 20
    if request.param == "memory":
        arguments = (images, targets, (0.5,), (0.3,))
        train = MemoryBatches(*arguments, 10, shuffle=True)
        found = Data(train, None, MemoryBatches(*arguments, 60), 1, 4, 3)
    else:
        dataset = TensorDataset(images.float() / 255, targets)
        loader = DataLoader(dataset, 10, shuffle=True)
        found = Data(LoaderBatches(loader), None, LoaderBatches(DataLoader(dataset, 20)))
    monkeypatch.setattr(subject, "read_data", lambda settings: found)
    monkeypatch.setattr(own, "model", lambda spec: Net())
    quick = functools.partial(dp.benchmark, runs=1, min_run_ms=0.1)
    monkeypatch.setattr(dp, "benchmark", quick)
    return Settings(
        model="nets:Net", epochs=2, prune_epochs=3, finetune_epochs=2, threads=1, seed=1
    ).resolved()


def test_the_main_job(small: Settings, tmp_path: Path) -> None:
    watch, folder = Watch(), RunFolder(tmp_path)
    returned = Run(small, folder, watch).start()
    found = json.loads((tmp_path / "report.json").read_text())
    assert found == json.loads(json.dumps(returned))
    assert found["macs_after"] <= 0.5 * found["macs_before"]
    assert found["params_after"] < found["params_before"]
    assert found["max_rel_error"] < 1e-5
    assert found["decayed"] - found["released"] == found["removed"] > 0
    assert [phase for phase in watch.phases if " " not in phase] == [
        "train", "prune", "cut", "finetune",
    ]  # fmt: skip
    assert watch.ticks > 42

    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sum(event["kind"] == "prune" for event in events) == found["removed"]
    assert min(event["step"] for event in events) > 12
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == list(range(1, 43))
    assert sum("accuracy" in row for row in history) == 7
    committed = [row["committed"] for row in history if row["phase"] == "prune"]
    assert committed[-1] <= 0.5
    assert (tmp_path / "norms.jsonl").stat().st_size > 0
    assert Report.read(tmp_path).finished


def test_times_are_those_of_one_thread_whatever_trains(small: Settings, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        found = Run(replace(small, threads=2), RunFolder(tmp_path), Watch()).start()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found["machine"]["threads"] == found["latencies"]["threads"] == 1
    assert found["latencies"]["processor_time"]


def test_macs_are_those_of_one_example_whatever_is_timed(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were divided by the batch that a latency budget is measured on."""
    monkeypatch.setattr(LatencyModel, "_timed", LatencyModel._unbent)
    timed = replace(small, budget=None, latency_budget=0.6)
    found = Run(timed, RunFolder(tmp_path), Watch()).start()
    assert found["macs_before"] * found["latencies"]["batch_size"] == pytest.approx(
        found["latencies"]["macs_before"], rel=0.01
    )


def test_the_saved_model_loads_into_a_dense_one(small: Settings, tmp_path: Path) -> None:
    run = Run(small, RunFolder(tmp_path), Watch())
    run.start()
    loaded = dp.load(tmp_path, Net()).eval()
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(loaded(x), run.model.eval()(x))


# 12 dense steps; decays from 13 on; the cut comes at about 30; 42 steps in all.
@pytest.mark.parametrize(
    ("stop_at", "calibrate"), [(1, 0), (12, 0), (17, 0), (26, 0), (36, 0), (17, 4), (36, 4)]
)
def test_stopped_and_resumed_it_ends_the_same_bit_for_bit(
    small: Settings, tmp_path: Path, stop_at: int, calibrate: int
) -> None:
    small = replace(small, calibrate=calibrate)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    Run(small, whole, Watch()).start()
    run = Run(small, parts, Watch())
    run._stop = lambda: run.step >= stop_at
    with pytest.raises(Interrupted):
        run.start()
    assert parts.unfinished
    torch.manual_seed(1234)  # a new process
    Run(small, parts, Watch()).resume()
    for name in FILES:
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes(), name
    same = ("accuracy_after", "decayed", "released", "removed", "rounds", "widths", "max_abs_error")
    for key in same:
        assert whole.report()[key] == parts.report()[key]


def test_calibrated_on_training_data_the_layers_take_over_what_leaves(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[int] = []

    class Spy(dp.DecayPruner):
        def __init__(self, *args: Any, calibrate: Any, **options: Any) -> None:
            batches = list(calibrate)
            watched.append(len(batches))
            super().__init__(*args, calibrate=batches, **options)

    monkeypatch.setattr(methods, "DecayPruner", Spy)
    run = Run(replace(small, calibrate=4), RunFolder(tmp_path), Watch())
    run.check()
    run.start()
    assert watched == [1, 4]  # one is enough to try


def test_killed_between_checkpoints_it_loses_only_time(small: Settings, tmp_path: Path) -> None:
    """Logs run ahead of the checkpoint when a run is killed; going on takes them back."""
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    Run(small, whole, Watch()).start()
    kill_at = 23
    for _ in range(3):
        run = Run(small, parts, Killer(kill_at), save_every=0.01)
        with pytest.raises(Killed):
            run.resume() if parts.unfinished else run.start()
        kill_at = 9
    Run(small, parts, Watch()).resume()
    for name in FILES:
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes(), name


def test_resuming_a_finished_run_gives_its_report(small: Settings, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    report = Run(small, folder, Watch()).start()
    watch = Watch()
    assert Run(small, folder, watch).resume()["accuracy_after"] == report["accuracy_after"]
    assert watch.ticks == 0


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    small: Settings, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(small.to_dict())
    assert Run(small, folder, Watch()).resume()["removed"] > 0


def test_a_trained_model_needs_no_dense_training(small: Settings, tmp_path: Path) -> None:
    settings = Settings(**{**small.to_dict(), "epochs": 0, "finetune_epochs": 0})
    watch = Watch()
    report = Run(settings, RunFolder(tmp_path), watch).start()
    assert report["macs_after"] <= 0.5 * report["macs_before"]
    assert Report.read(tmp_path).finished


def one_shot(small: Settings, finetune: int = 0) -> Settings:
    changes = {"epochs": 0, "prune_epochs": 0, "finetune_epochs": finetune}
    return Settings(**{**small.to_dict(), **changes, "variant": "alone", "calibrate": 4})


def test_a_trained_model_is_cut_without_training(small: Settings, tmp_path: Path) -> None:
    run = Run(one_shot(small), RunFolder(tmp_path), Watch())
    run.check()
    before = run.model.conv.weight.detach().clone()
    report = run.start()
    rows = [[torch.equal(row, one) for one in before] for row in run.model.conv.weight]
    assert 0 < len(rows) < len(before)
    assert all(map(any, rows))
    assert report["macs_after"] <= 0.5 * report["macs_before"]
    assert not (tmp_path / "history.jsonl").exists()
    assert Report.read(tmp_path).finished


@pytest.mark.parametrize("kill_at", [1, 2, 3, 8])
def test_killed_while_it_cuts_without_training_it_loses_only_time(
    small: Settings, tmp_path: Path, kill_at: int
) -> None:
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    settings = one_shot(small, finetune=1)
    Run(settings, whole, Watch()).start()
    with pytest.raises(Killed):
        Run(settings, parts, Killer(kill_at), save_every=0.01).start()
    Run(settings, parts, Watch()).resume()
    for name in FILES[:3]:
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes(), name


@pytest.mark.parametrize("epochs", [0, 2])
def test_the_rate_is_halved_only_after_a_training_of_its_own(
    small: Settings, tmp_path: Path, epochs: int
) -> None:
    settings = Settings(**{**small.to_dict(), "epochs": epochs, "lr": 0.02})
    Run(settings, RunFolder(tmp_path), Watch()).start()
    rows = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    rates = [row["lr"] for row in rows if row["phase"] != "train"]
    assert rates[0] == (0.01 if epochs else 0.02)
