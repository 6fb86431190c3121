"""One run: an arm makes something of a seed's dense network, which is trained and judged."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import decayprune as dp
from decayprune.app.pretrained.arms import Arm, ArmRun, Start
from decayprune.app.pretrained.loop import Data, evaluate, normalised_anew, train
from decayprune.app.pretrained.task import Task, dense, dense_accuracy

GLANCES = (0.02, 0.1, 0.25, 0.5)
"""Shares of the steps after which held-out examples are looked at."""

EXAMPLES_OF_A_GLANCE = 500

STATISTICS = 60
"""Batches from which the statistics of batch normalisation are taken, in the end."""


def execute(
    task: Task, run: ArmRun, arms: Mapping[str, Arm], data: Data, *, judged_on: str
) -> dict[str, Any]:
    """Everything that the tables need of a run.

    Args:
        task: Of which it is.
        run: What is run.
        arms: By name.
        data: All parts.
        judged_on: ``"test"``, or ``"held_out"`` where something is chosen.
    """
    reference = dense(task, run.seed, data, run.dense_steps)
    torch.manual_seed(20_000 + run.seed)
    subject = arms[run.arm](Start(task, run, data))
    marks = {max(1, round(share * subject.steps)) for share in GLANCES}
    curve: list[tuple[int, float]] = []

    def glance(step: int) -> None:
        if step in marks:
            accuracy = evaluate(subject.model, data["held_out"], EXAMPLES_OF_A_GLANCE)
            curve.append((step, accuracy))

    trained = train(
        subject.model,
        data["train"].forever(20_000 + run.seed),
        subject.steps,
        run.lr,
        title=run.name,
        optimizer_on=subject.optimizer_on,
        pruner_on=subject.pruner_on,
        teacher=subject.teacher,
        glance=glance,
    )
    kinds = Counter(event.kind for event in getattr(trained["pruner"], "events", []))
    before = dense_accuracy(task, run.seed, reference, data, judged_on, run.dense_steps)
    return {
        "judged_on": judged_on,
        "steps_trained": subject.steps,
        "accuracy": evaluate(subject.model, data[judged_on]),
        "dense_accuracy": before,
        **size(task, reference, subject.model),
        "released": kinds["release"],
        "curve": curve,
        "cpu_seconds": trained["seconds"],
        "accuracy_normalised_anew": _normalised_anew(subject.model, run, data, judged_on),
    }


def _normalised_anew(model: nn.Module, run: ArmRun, data: Data, judged_on: str) -> float | None:
    """Accuracy with statistics from batches of the end; None without batch normalisation."""
    batches = itertools.islice(data["train"].forever(40_000 + run.seed), STATISTICS)
    return evaluate(model, data[judged_on]) if normalised_anew(model, batches) else None


def size(task: Task, reference: nn.Module, model: nn.Module) -> dict[str, Any]:
    """What a model has left of the dense one, in numbers and in measured time."""
    latency = dp.benchmark(reference, model, task.example(8), runs=15)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (reference, model)]
    return {
        "macs": task.macs(model) / task.macs(reference),
        "params": sizes[1] / sizes[0],
        "speedup": latency.speedup,
        "milliseconds": [latency.before_ms, latency.after_ms],
        **task.widths(model),
    }
