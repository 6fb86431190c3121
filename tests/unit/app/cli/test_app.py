import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import decayprune as dp
from decayprune.app.cli import main
from decayprune.app.cli.app import app
from decayprune.app.run import models, run

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

def broken():
    x = torch.full((80, 6), float("nan"))
    data = TensorDataset(x, torch.arange(80) % 2)
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
        "resnet8_wide on digits, to 50% of its MACs",
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
    assert figures["variant"] == "sp_sr"
    assert figures["settings"]["data_dir"] == "~/.cache/decayprune"
    model = models.build("resnet8_wide", 1, 10, 8)
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
    assert "residual branch" not in out
    code, out, _ = call("inspect", "--model", "resnet20", "--depth")
    assert (code, "residual branch" in out) == (0, True)
    code, out, _ = call("inspect", "--model", "mine:net", "--input", "1,6")
    assert code == 0
    assert "16" in out


def test_options_may_be_typed_as_the_library_spells_them() -> None:
    words = ["--input", "1,6", "--ignored_layers", "0"]
    code, out, _ = call("inspect", "--model", "mine:net", *words)
    assert (code, "ignored" in out) == (0, True)
    code, _, err = call("prune", "--round_to", "eight")
    assert (code, "--round-to expects" in err) == (2, True)


def test_inspect_takes_several_inputs_and_whole_numbers(folder: Path) -> None:
    (folder / "more.py").write_text(
        """
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(8, 32), nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x, y):
        return self.o((self.a(x) + self.b(y)).relu())

def tokens(width=32):
    layers = [nn.Embedding(50, width), nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 4)]
    return nn.Sequential(*layers)
"""
    )
    for words in (
        ["more:Two", "--input", "1,8", "--input", "1,6"],
        ["more:Two", "--input", "y=1,6", "--input", "x=1,8"],
        ["more:tokens?width=40", "--input", "1,6:long"],
    ):
        code, out, err = call("inspect", "--model", *words)
        assert (code, err) == (0, "")
        assert ("40" if "tokens" in words[0] else "32") in out
    code, out, _ = call("inspect", "--model", "mine:net", "--input", "1,6", "--ignored-layers", "0")
    assert code == 0
    assert "ignored" in out
    sys.modules.pop("more")


def test_what_is_said_before_a_run_comes_after_every_check() -> None:
    code, out, err = call("prune", "--importance", "luck")
    assert (code, out) == (2, "")
    assert "--importance expects one of" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune", "--dataset", "mnist"], "--dataset expects one of digits"),
        (["prune", "--model", "alexnet"], "--model expects one of resnet8"),
        (["prune", "--model", "nowhere:net"], "there is no module 'nowhere'"),
        (["prune", "--data", "mine:loaders"], "give --model as well"),
        (["prune", "--data", "mine:loaders", "--model", "resnet8"], "--model pkg.mod:factory"),
        (["prune", "--budget", "0"], "found 0.0. To remove 30 %, write --budget 0.7."),
        (["prune", "--decay-steps", "0"], "--decay-steps must be at least 1; found 0."),
        (["prune", "--device", "tpu"], "--device expects cpu, cuda or cuda:1 and"),
        (["prune", "--threads", "0"], "--threads must be at least 1; found 0."),
        (["prune", "--decay-steps", "9999"], "raise --prune-epochs"),
        (["prune", "--importance", "luck"], "--importance expects one of sensitivity"),
        (["prune", "--resume"], "holds no settings.json"),
        (["prune", "--json", "no/such/x.json"], "there is no folder no/such"),
        (
            ["prune", "--model", "mine:fails"],
            "--model mine:fails raised KeyError: 'inside your code' (mine.py, line 24). Mend it th",
        ),
        (["inspect", "--input", "1,6"], "--input goes with --model torchvision:NAME"),
        (["inspect", "--model", "mine:net", "--input", "a,b"], "sizes such as 1,3,224,224"),
        (
            ["inspect", "--model", "mine:net", "--input", "1,3,8,8"],
            "does not run on example_inputs",
        ),
        (["inspect", "--model", "mine:net"], "give its sizes, such as --input 1,3,224,224"),
        (["inspect", "--model", "torchvision:resnt50", "--input", "1,3,8,8"], "you mean resnet50"),
        (["prune", "--data", "nowhere", "--model", "mine:net"], "there is no folder nowhere"),
        (
            ["prune", "--weights", "no.pt"],
            "a file or a folder; there is no no.pt",
        ),
        (["report", "nowhere"], "found no folder"),
        (["bench", "nowhere"], "Expected the folder of an earlier run of `decayprune prune`; now"),
    ],
)
def test_errors_are_one_message_and_code_2(words: list[str], message: str) -> None:
    code, _, err = call(*words)
    assert code == 2
    assert message in err
    assert err.startswith("Error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("mine:net", "--data mine:net should return a pair (train_loader, test_loader)"),
        ("mine:broken", "hold no finite number"),
    ],
)
def test_what_the_library_raises_itself_needs_no_traceback(data: str, message: str) -> None:
    code, _, err = call("prune", "--model", "mine:net", "--data", data, *TINY)
    assert code == 2
    assert message in err
    assert "--traceback" not in err
    assert not err.startswith(("Error: TypeError", "Error: RuntimeError"))


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = call("prune", "--device", "cuda")
    assert code == 2
    assert "found none. Leave --device out to compute on the processor." in err


def test_traceback_shows_where() -> None:
    with pytest.raises(ValueError, match="inside your code") as caught:
        call("prune", "--model", "mine:fails", "--traceback")
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_out_that_cannot_be_made(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    code, _, err = call("prune", *TINY, "--out", "taken")
    assert code == 2
    assert "taken cannot (File exists). Name another one." in err


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run.Run._record
    handler = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background

    def interrupting(self: run.Run, *words: object) -> None:
        original(self, *words)  # type: ignore[arg-type]
        if self.step == 25:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run.Run, "_record", interrupting)
    code, out, _ = call("prune", *TINY, "--out", "my run")
    assert code == 130
    assert "decayprune prune --resume --out 'my run'" in out
    assert (folder / "my run" / "checkpoint.pt").is_file()
    assert signal.getsignal(signal.SIGINT) is handler
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


def test_a_finished_run_is_replaced_only_when_asked(folder: Path) -> None:
    own = ["prune", "--model", "mine:net", "--data", "mine:loaders", *TINY, "--lr", "0.05"]
    assert call(*own)[0] == 0
    before = (folder / "decayprune-out" / "report.json").read_bytes()
    code, _, err = call(*own, "--seed", "1")
    assert code == 2
    assert "holds a finished run. Keep it and give another --out, or replace it with --ov" in err
    assert (folder / "decayprune-out" / "report.json").read_bytes() == before
    assert call(*own, "--seed", "1", "--overwrite")[0] == 0
    assert json.loads((folder / "decayprune-out" / "report.json").read_text())["seed"] == 1


def test_a_report_that_cannot_be_written_is_one_message(folder: Path) -> None:
    (folder / "run" / "report.html").mkdir(parents=True)
    (folder / "run" / "settings.json").write_text("{}")
    code, _, err = call("report", "run")
    assert code == 2
    assert "Is a directory" in err
    assert "Traceback" not in err


# Kills itself as kill -9 does: after a step, or with a checkpoint half written.
KILLED = """
import os, signal, sys
from decayprune.app.cli import main
from decayprune.app.run import run
from decayprune.app.run import runfolder

kill_at, writing = int(sys.argv.pop(1)), sys.argv.pop(1) == "writing"
record, write = run.Run._record, runfolder.write_atomically
step = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def recorded(self, *words):
    global step
    record(self, *words)
    step = self.step
    if step == kill_at and not writing:
        die()

def written(targets):
    if step == kill_at and writing:
        for path in targets:
            path.with_name(path.name + ".part").write_bytes(b"half of it")
        die()
    write(targets)

run.Run._record, runfolder.write_atomically = recorded, written
main()
"""


@pytest.mark.parametrize(
    ("kill_at", "moment", "host"),
    [
        (3, "training", "default"),
        (26, "writing", "default"),
        (55, "training", "default"),
        (30, "training", "hesso"),
    ],
)
def test_killed_and_resumed_it_ends_the_same_bit_for_bit(
    folder: Path, kill_at: int, moment: str, host: str
) -> None:
    """kill -9 in dense training, in decaying and in fine-tuning (60 steps in all)."""
    own = ["--model", "mine:net", "--data", "mine:loaders", "--lr", "0.05", "--threads", "1"]
    words = [*own, "--epochs", "2", "--prune-epochs", "2", "--finetune-epochs", "2"]
    words += ["--host", host]
    command = [sys.executable, "-c", KILLED, str(kill_at), moment, "prune", "--save-every", "0"]
    process = subprocess.run(
        [*command, *words, "--out", "killed"], capture_output=True, timeout=200, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert (folder / "killed" / "checkpoint.pt").is_file()
    assert not (folder / "killed" / "report.json").exists()
    history = (folder / "killed" / "history.jsonl").read_bytes()
    assert history.count(b"\n") == kill_at
    code, _, err = call("prune", "--resume", "--out", "killed")
    assert (code, err) == (0, "")
    code, _, _ = call("prune", *words, "--out", "whole")
    assert code == 0
    for name in ("model.safetensors", "events.jsonl", "history.jsonl"):
        assert (folder / "whole" / name).read_bytes() == (folder / "killed" / name).read_bytes()
    assert not list((folder / "killed").glob("*.part"))
    kept = json.loads((folder / "killed" / "report.json").read_text())["command"]
    assert kept.startswith("decayprune prune --save-every 0 --model mine:net")


def test_version_and_help() -> None:
    assert call("--version")[:2] == (0, f"{dp.__version__}\n")
    code, out, _ = call("prune", "--help")
    assert code == 0
    for option in ("--dataset", "--budget", "--decay-steps", "--variant", "--resume", "--json"):
        assert option in out


def test_without_the_extra_the_command_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "decayprune.app.cli.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "pip install 'decayprune[cli]'" in capsys.readouterr().err
