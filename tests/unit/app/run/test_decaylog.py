import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from decayprune.app.run.decaylog import DecayLog
from decayprune.app.run.runfolder import RunFolder
from decayprune.method.lifecycle import Event
from decayprune.selection.schedule import Schedule


def pruning(structures: int, decaying: list[int], decay_steps: int) -> Any:
    """What the log looks at, and nothing else."""
    lengths = torch.arange(structures, dtype=torch.float32)
    lifecycle = SimpleNamespace(
        decaying=torch.tensor(decaying, dtype=torch.int64), length=lengths, start_length=2 * lengths
    )
    host = SimpleNamespace(
        events=[Event(1, "decay", 0, "conv", 0)],
        structures=SimpleNamespace(num_structures=structures),
        lifecycle=lifecycle,
    )
    schedule = Schedule(stop=decay_steps, decay_steps=decay_steps)
    return SimpleNamespace(host=host, schedule=schedule)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_events_are_logged_once_at_the_steps_of_the_run(tmp_path: Path) -> None:
    found, counts = pruning(4, [], 10), {"decayed": 5}
    log = DecayLog(RunFolder(tmp_path), found, counts)
    found.host.events += [
        Event(3, "decay", 1, "conv", 1),
        Event(3, "release", 2, "conv", 2, c_rate=0.5, c_len=0.25, work=0.1),
        Event(3, "prune", 3, "conv", 3, c_rate=0.0, c_len=0.0, work=0.0),
    ]
    log.write(103)
    log.write(104)
    logged = lines(tmp_path, "events.jsonl")
    # What had happened before the log began is in the file already.
    assert [(row["step"], row["kind"], row["structure"]) for row in logged] == [
        (103, "decay", 1), (103, "release", 2), (103, "prune", 3),
    ]  # fmt: skip
    assert logged[1]["c_rate"] == 0.5
    assert counts == {"decayed": 6, "released": 1}


def test_norms_are_sampled_in_steps_and_structures(tmp_path: Path) -> None:
    found = pruning(900, [0, 1, 3, 899], 300)
    log = DecayLog(RunFolder(tmp_path), found, {})
    for step in (1, 2, 3):
        log.write(step)
    # 300 of 900 structures, 100 of 300 steps.
    assert lines(tmp_path, "norms.jsonl") == [
        {"step": 3, "structure": 0, "length": 0.0, "start": 0.0},
        {"step": 3, "structure": 3, "length": 3.0, "start": 6.0},
    ]
