"""Kill ``decayprune prune`` at random moments, go on with ``--resume``, compare every byte.

``python benchmarks/faults/kills.py`` runs a small network through all phases of the command, once
in peace and then again and again, each time ended by SIGKILL at a random moment (one in four is
killed once more while it resumes). Every resumed run has to leave the same model, the same logs and
the same accuracy as the undisturbed one. Each command is a process of its own, forked from one that
has imported torch already: otherwise a hundred imports would be all there is to see. ``--host``
tries another pruning method.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401  (loaded once, for all processes)
import torch
import torch._dynamo
from record import begun, keep, options
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import decayprune.app.cli.app  # noqa: F401
from decayprune.app.cli import main as command
from decayprune.app.run.methods import HOSTS

SAME = ("model.safetensors", "structure.json", "history.jsonl", "events.jsonl", "norms.jsonl")
FIGURES = ("accuracy_before", "accuracy_after", "macs_after", "decayed", "released", "removed")


class Net(nn.Module):
    """A convolution, a normaliser, dropout: everything that a resumed run has to get right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 16, 24)
        self.dropout = nn.Dropout(0.2)
        self.fc2 = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, 1, 4, 4)`` to logits ``(B, 3)``."""
        x = torch.relu(self.bn(self.conv(x))).flatten(1)
        return self.fc2(self.dropout(torch.relu(self.fc1(x))))


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Ninety images in three classes by brightness, in an order drawn anew each epoch."""
    images = torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, images.mean((1, 2, 3)).argsort().argsort() // 30)
    return DataLoader(data, 10, shuffle=True), DataLoader(data, 45)


def start(words: list[str], log: Path) -> int:
    """Start the command in a process of its own; returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["decayprune", *words]
        command()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(number: int) -> int:
    """Wait for a process: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def beginning(out: Path, host: str) -> list[str]:
    """The command for a run of a few seconds through all phases."""
    own = ["--model", "kills:Net", "--data", "kills:loaders"]
    length = ["--epochs", "2", "--prune-epochs", "6", "--finetune-epochs", "3"]
    rest = ["--threads", "1", "--save-every", "0.05", "--host", host, "--out", str(out)]
    return ["prune", *own, *length, *rest]


def state(out: Path) -> str:
    """In which phase a killed run was, by its last line of history."""
    if (out / "report.json").exists():
        return "after the report"
    if not (out / "settings.json").exists():
        return "before the settings"
    history = out / "history.jsonl"
    phases = re.findall(r'"phase": "(\w+)"', history.read_text()) if history.exists() else []
    return phases[-1] if phases else "before the first step"


def content(path: Path) -> bytes | None:
    """A file, or None: what is cut at once leaves no norms behind."""
    return path.read_bytes() if path.exists() else None


def differences(whole: Path, parts: Path) -> list[str]:
    """What the two runs left that is not the same."""
    odd = [name for name in SAME if content(whole / name) != content(parts / name)]
    ours, theirs = (json.loads((path / "report.json").read_text()) for path in (whole, parts))
    return odd + [name for name in FIGURES if ours[name] != theirs[name]]


def disturbed(out: Path, host: str, draw: random.Random, trained: float, whole: float) -> list[str]:
    """One run, killed at least once and gone on with to its end; returns where it was killed."""
    log, killed = out.with_suffix(".log"), []
    words = beginning(out, host)
    while not killed or draw.random() < 0.25:
        number = start(words, log)
        # Most of the time goes into timing the models at the end: half of the kills avoid it.
        time.sleep(draw.uniform(0, draw.choice([trained, whole])))
        os.kill(number, signal.SIGKILL)
        if ended(number) != -signal.SIGKILL:
            shutil.rmtree(out)  # it was over before: draw again
            words = beginning(out, host)
            continue
        killed.append(state(out))
        resumable = (out / "settings.json").exists()
        words = ["prune", "--resume", "--out", str(out)] if resumable else beginning(out, host)
    if ended(start(words, log)) != 0:
        raise SystemExit(f"The run could not be resumed after {killed}: see {log}")
    return killed


def main() -> None:
    chosen = options(__doc__.splitlines()[0], 100, host=HOSTS)
    name = "kills" if chosen.host == HOSTS[0] else f"kills, {chosen.host}"
    torch.set_num_threads(1)
    os.chdir(Path(__file__).parent)  # where the command finds kills:Net
    found = begun(name, chosen, {"runs": 0, "equal": 0, "different": [], "killed_in": {}})
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    whole, parts = folder / "whole", folder / "parts"
    started = time.time()
    if ended(start(beginning(whole, chosen.host), folder / "whole.log")) != 0:
        raise SystemExit(f"The undisturbed run failed: see {folder / 'whole.log'}")
    length = time.time() - started
    trained = (whole / "history.jsonl").stat().st_mtime - started
    while found["done"] < chosen.count:
        began = time.time()
        draw = random.Random(f"{chosen.seed} {found['runs']}")
        killed = disturbed(parts, chosen.host, draw, trained, length)
        odd = differences(whole, parts)
        found["runs"] += 1
        found["done"] += len(killed)
        found["equal"] += not odd
        found["different"] += [{"killed_in": killed, "differs": odd}] if odd else []
        for where in killed:
            found["killed_in"][where] = found["killed_in"].get(where, 0) + 1
        found["seconds"] = round(found["seconds"] + time.time() - began, 1)
        keep(name, found)
        print(found["done"], killed, odd or "equal", flush=True)
        if odd:
            shutil.copytree(parts, folder / f"different-{found['runs']}")
        shutil.rmtree(parts)
    if not found["different"]:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
