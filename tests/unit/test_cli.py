import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import decayprune as dp
from decayprune.cli import main
from decayprune.cli.app import app
from decayprune.recipes import models, run

TINY = ["--epochs", "1", "--prune-epochs", "1", "--finetune-epochs", "1", "--threads", "1"]
OWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

def net():
    return Net()

def loaders():
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long())
    return DataLoader(data, 8, shuffle=True), DataLoader(data, 40)

def fails():
    raise KeyError("inside your code")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    sys.modules.pop("mine", None)


def call(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_main_job_says_what_it_does_and_where_everything_is(folder: Path) -> None:
    code, out, err = call("prune", *TINY, "--json", "figures.json")
    assert (code, err) == (0, "")
    for words in (
        "resnet8 on digits, to 50% of its MACs",
        "decaying and pruning: done",
        "accuracy", "MACs", "parameters", "latency", "decayed", "released", "removed",
        "decayprune-out/model.safetensors", "decayprune-out/report.html", "figures.json",
    ):  # fmt: skip
        assert words in out
    assert "\x1b" not in out
    assert "\r" not in out
    figures = json.loads((folder / "figures.json").read_text())
    assert figures == json.loads((folder / "decayprune-out" / "report.json").read_text())
    wanted = {
        "accuracy_before", "accuracy_after", "macs_before", "macs_after", "params_before",
        "params_after", "latencies", "released", "removed",
    }  # fmt: skip
    assert wanted <= set(figures)
    assert figures["macs_after"] <= figures["macs_before"] / 2
    assert figures["command"] == shlex.join(
        ["decayprune", "prune", *TINY, "--json", "figures.json"]
    )
    assert figures["variant"] == "sp+sr"
    assert figures["settings"]["data_dir"] == "~/.cache/decayprune"
    model = models.build("resnet8", 1, 10, 8)
    dp.load(folder / "decayprune-out", model)
    assert sum(p.numel() for p in model.parameters()) == figures["params_after"]
    assert (folder / "decayprune-out" / "report.html").stat().st_size > 1000


def test_ones_own_model_and_loaders_then_bench_report_and_resume(folder: Path) -> None:
    own = ["--model", "mine:net", "--data", "mine:loaders"]
    code, out, _ = call("prune", *own, *TINY, "--lr", "0.05", "--out", "mine-out")
    assert code == 0
    assert "mine:net on mine:loaders" in out

    code, out, _ = call("bench", "mine-out", "--batch-size", "4", "--runs", "2")
    assert code == 0
    assert "batch 4" in out
    assert "MACs alone would give 2" in out

    (folder / "mine-out" / "report.html").unlink()
    code, out, _ = call("report", "mine-out")
    assert code == 0
    assert "removed" in out
    assert (folder / "mine-out" / "report.html").is_file()

    before = (folder / "mine-out" / "model.safetensors").read_bytes()
    code, out, _ = call("prune", "--resume", "--out", "mine-out")
    assert code == 0
    assert "decaying" not in out
    assert "removed" in out
    assert (folder / "mine-out" / "model.safetensors").read_bytes() == before


def test_inspect_lists_groups_and_refusals() -> None:
    code, out, _ = call("inspect", "--model", "resnet20")
    assert code == 0
    assert "stages.2.2.conv1" in out
    assert "the model's output" in out
    code, out, _ = call("inspect", "--model", "mine:net", "--input", "1,6")
    assert code == 0
    assert "16" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune", "--dataset", "mnist"], "--dataset expects one of digits"),
        (["prune", "--model", "alexnet"], "--model expects one of resnet8"),
        (["prune", "--model", "nowhere:net"], "there is no module 'nowhere'"),
        (["prune", "--data", "mine:loaders"], "give --model as well"),
        (["prune", "--data", "mine:loaders", "--model", "resnet8"], "--model pkg.mod:factory"),
        (["prune", "--budget", "0"], "found 0.0"),
        (["prune", "--decay-steps", "0"], "decay_steps is at least 1"),
        (["prune", "--decay-steps", "9999"], "raise --prune-epochs"),
        (["prune", "--importance", "luck"], "importance is one of"),
        (["prune", "--resume"], "holds no settings.json"),
        (["prune", "--json", "no/such/x.json"], "there is no folder no/such"),
        (["prune", "--model", "mine:fails"], "inside your code'\nRun the command again with --tr"),
        (["inspect", "--input", "1,6"], "--input goes with a model of your own"),
        (["inspect", "--model", "mine:net", "--input", "a,b"], "sizes such as 1,3,224,224"),
        (["inspect", "--model", "mine:net", "--input", "1,3,8,8"], "rror"),
        (["report", "nowhere"], "found no folder"),
        (["bench", "nowhere"], "holds no settings.json"),
    ],
)
def test_errors_are_one_message_and_code_2(words: list[str], message: str) -> None:
    code, _, err = call(*words)
    assert code == 2
    assert message in err
    assert err.startswith("Error: ")
    assert "Traceback" not in err


def test_traceback_shows_where() -> None:
    with pytest.raises(KeyError, match="inside your code"):
        call("prune", "--model", "mine:fails", "--traceback")


def test_an_out_that_cannot_be_made(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    code, _, err = call("prune", *TINY, "--out", "taken")
    assert code == 2
    assert "taken cannot (File exists). Name another one." in err


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run.Run._record

    def interrupting(self: run.Run, *words: object) -> None:
        original(self, *words)  # type: ignore[arg-type]
        if self.step == 25:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run.Run, "_record", interrupting)
    code, out, _ = call("prune", *TINY, "--out", "my run")
    assert code == 130
    assert "decayprune prune --resume --out 'my run'" in out
    assert (folder / "my run" / "checkpoint.pt").is_file()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    os.chdir(folder)

    code, _, err = call("prune", *TINY, "--out", "my run")
    assert code == 2
    assert "has not finished" in err
    code, _, err = call("prune", "--resume", "--out", "my run", "--seed", "3")
    assert code == 2
    assert "began with --seed 0" in err
    code, out, _ = call("report", "my run")
    assert code == 0
    assert "Unfinished" in out
    code, out, _ = call("prune", "--resume", "--out", "my run")
    assert code == 0
    assert not (folder / "my run" / "checkpoint.pt").exists()
    code, _, _ = call("prune", *TINY, "--out", "whole")
    assert code == 0
    for name in ("model.safetensors", "events.jsonl", "history.jsonl"):
        assert (folder / "whole" / name).read_bytes() == (folder / "my run" / name).read_bytes()


def _start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "decayprune.cli", "prune", "--save-every", "0", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("kill_at", [3, 26, 45])
def test_killed_and_resumed_it_ends_the_same_bit_for_bit(
    folder: Path, kill_at: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """kill -9 in dense training, in decaying and in fine-tuning (57 steps in all)."""
    own = ["--model", "mine:net", "--data", "mine:loaders", "--lr", "0.05", "--threads", "1"]
    epochs = ["--epochs", "2", "--prune-epochs", "2", "--finetune-epochs", "2"]
    process = _start(*own, *epochs, "--out", "killed")
    history = folder / "killed" / "history.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if history.is_file() and history.read_bytes().count(b"\n") >= kill_at:
            break
        time.sleep(0.0005)
    process.kill()
    process.wait()
    code, _, err = call("prune", "--resume", "--out", "killed")
    assert (code, err) == (0, "")
    code, _, _ = call("prune", *own, *epochs, "--out", "whole")
    assert code == 0
    for name in ("model.safetensors", "events.jsonl", "history.jsonl"):
        assert (folder / "whole" / name).read_bytes() == (folder / "killed" / name).read_bytes()


def test_version_and_help() -> None:
    assert call("--version")[:2] == (0, f"{dp.__version__}\n")
    code, out, _ = call("prune", "--help")
    assert code == 0
    for option in ("--dataset", "--budget", "--decay-steps", "--variant", "--resume", "--json"):
        assert option in out


def test_without_the_extra_the_command_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "decayprune.cli.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "pip install 'decayprune[cli]'" in capsys.readouterr().err
