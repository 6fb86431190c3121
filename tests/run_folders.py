"""Run folders for the tests of the report: a small one, a big one, and ways to change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from decayprune.app.report import Report, write_html

Lines = list[dict[str, Any]]


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "format": "decayprune-report",
        "version": 1,
        "command": "decayprune prune --dataset digits",
        "settings": {"lr": 0.05, "rectify": True, "data_dir": None, "model": "resnet8"},
        "versions": {"decayprune": "0.1.0", "torch": "2.9.0", "python": "3.11.7"},
        "machine": {"cpu": "A CPU @ 2 GHz", "cores": 2, "threads": 1},
        "dataset": "digits",
        "model": "resnet8",
        "host": None,
        "seed": 0,
        "accuracy_before": 0.972,
        "accuracy_after": 0.97,
        "macs_before": 1000,
        "macs_after": 498,
        "params_before": 20000,
        "params_after": 9000,
        "latency_before_ms": 3.4,
        "latency_after_ms": 2.0,
        "batch_size_latency": 32,
        "latency_form": "eager",
        "decayed": 3,
        "released": 1,
        "removed": 2,
        "max_abs_error": 1e-6,
        "max_rel_error": 2e-7,
        "budget": {"macs": 0.5},
        "seconds": 31.5,
        "widths": [{"layer": "conv", "before": 4, "after": 2}],
        "rounds": [10, 20],
        "refusals": [{"layer": "fc", "width": 10, "reason": "the model's output"}],
        "limits": {"stop": 30, "decay_steps": 8},
        "metric": "accuracy",
        "judged_on": "the test split",
        "repeat": "decayprune prune --seed 1",
        **changes,
    }


def event(step: int, kind: str, structure: int, layer: str = "conv") -> dict[str, Any]:
    figures = {"c_rate": 0.5, "c_len": 0.25, "work": None}
    return {
        "step": step, "kind": kind, "structure": structure, "layer": layer, "index": structure,
        **figures,
    }  # fmt: skip


EVENTS = [
    event(10, "decay", 0), event(10, "decay", 1), event(14, "release", 1), event(18, "prune", 0),
    event(20, "decay", 2), event(28, "prune", 2),
]  # fmt: skip
HISTORY: Lines = [
    {"step": 0, "phase": "train", "loss": 2.0, "lr": 0.1},
    {"step": 9, "phase": "train", "loss": 1.0, "lr": 0.1, "accuracy": 0.9},
    {"step": 10, "phase": "prune", "loss": 0.5, "lr": 0.1, "committed": 0.7},
    {"step": 40, "phase": "finetune", "loss": 0.2, "lr": 0.01, "accuracy": 0.97},
]
NORMS: Lines = [
    {"step": 10 + k, "structure": s, "length": 1 - k / 8, "start": 1.0}
    for s, age in ((0, 8), (1, 4))
    for k in range(age + 1)
]


def make_run(run: Path) -> Path:
    run.mkdir()
    write_lines(run / "events.jsonl", EVENTS)
    write_lines(run / "history.jsonl", HISTORY)
    write_lines(run / "norms.jsonl", NORMS)
    (run / "report.json").write_text(json.dumps(summary()))
    return run


def write_lines(path: Path, lines: Lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def finished(folder: Path, **changes: Any) -> Report:
    (folder / "report.json").write_text(json.dumps(summary(**changes)))
    return Report.read(folder)


def unfinished(folder: Path) -> Report:
    (folder / "report.json").unlink()
    return Report.read(folder)


def page_of(report: Report, folder: Path) -> str:
    write_html(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def write_big_run(folder: Path) -> None:
    """20,000 events in 120 layers, 30,000 moments, 60 trajectories of 100 samples."""
    events = []
    for s in range(8000):
        layer = f"backbone.stages.{s % 120}.blocks.0.conv2"
        events.append(event(20_000 + s, "decay", s, layer))
        if s % 2:
            events.append(event(20_100 + s, "release", s, layer))
            events.append(event(20_200 + s, "decay", s, layer))
        events.append(event(20_500 + s, "prune", s, layer))
    phases = ("train", "prune", "finetune")
    moments: Lines = [
        {"step": s, "phase": phases[s // 20_000], "loss": 1 + s % 7, "lr": 0.1, "accuracy": 0.5}
        for s in range(0, 60_000, 2)
    ]
    samples: Lines = [
        {"step": 20_000 + 3 * k + s, "structure": s, "length": 1 - k / 100, "start": 1.0}
        for s in range(60)
        for k in range(101)
    ]
    write_lines(folder / "events.jsonl", sorted(events, key=lambda line: line["step"]))
    write_lines(folder / "history.jsonl", moments)
    write_lines(folder / "norms.jsonl", samples)
    widths = [
        {"layer": f"backbone.stages.{i}.blocks.0.conv2", "before": 70, "after": 3}
        for i in range(120)
    ]
    (folder / "report.json").write_text(json.dumps(summary(widths=widths)))
