"""Runs one trial from the shared dense checkpoint to its JSON file.

The file is written when the run has ended, beside its place and then renamed: what exists is
complete. It holds everything a table may ask for, and what a pair has to have in common.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decayprune.app.run import data as datasets
from decayprune.app.run.batches import Batches, MemoryBatches
from decayprune.app.run.loop import Step, evaluate
from decayprune.app.run.surroundings import commit, machine, versions
from decayprune.app.study.controls import cut_to
from decayprune.app.study.dense import dense, fresh, from_scratch, steps_of, train
from decayprune.app.study.plan import build
from decayprune.app.study.trial import Trial
from decayprune.cost import CostModel
from decayprune.latency.benchmark import benchmark
from decayprune.method.lifecycle import Event
from decayprune.session.host import Host
from decayprune.structures.tracing.trace import trace

Say = Callable[[str], None]


class Job:
    """One trial being run.

    Args:
        trial: What to do.
        folder: Of the study: holds ``dense/``.
        data_dir: Where files of data sets are.
        say: Told what goes on, a line at a time.

    Raises:
        FileNotFoundError: Data, or pretrained weights, are not there.
    """

    def __init__(
        self, trial: Trial, folder: Path, data_dir: Path, say: Say = lambda line: None
    ) -> None:
        self.trial, self._say = trial, say
        self._folder, self._data_dir = folder, data_dir
        self.data = read_data(trial, data_dir)
        self.curve: list[dict[str, float]] = []

    def run(self) -> dict[str, Any]:
        """Train, prune, and judge; the figures of the run."""
        begun, cpu = time.time(), time.process_time()
        trial = self.trial
        self.curve = []
        model, digest = dense(trial, self.data, self._folder, self._data_dir, self._say)
        self._check_start(digest)
        before = self._dense_accuracy(model)
        steps = steps_of(trial, trial.training, self.data)
        whole = copy.deepcopy(model)
        pruned = self._train(model, steps)
        figures = {
            "trial": trial.to_dict(),
            "steps": steps,
            "dense_digest": digest,
            "dense_test_accuracy": before,
            "latency": self._latency(whole, pruned["model"]),
            "validation_accuracy": self._last_validation(pruned["model"], steps),
            "test_accuracy": evaluate(pruned.pop("model"), self.data.test, trial.bf16),
            "curve": self.curve,
            **pruned,
            "wall_seconds": round(time.time() - begun, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "versions": versions(),
            "machine": machine(torch.get_num_threads()),
            "commit": commit(),
        }
        return figures

    def _check_start(self, digest: str) -> None:
        """Refuse what is no pair before it is trained for hours."""
        partner = self._partner()
        if partner is not None and partner["dense_digest"] != digest:
            raise ValueError(
                f"The host alone began with other weights ({partner['dense_digest']}, on "
                f"{partner['machine']['cpu']}) than are here ({digest}). Networks that two "
                "processors train differ in their last bits: use another folder here, so that "
                "both runs of a pair are made on one machine, or bring the folder's dense/ along."
            )

    def _dense_accuracy(self, model: nn.Module) -> float:
        """On the test images; as the host alone found it, if that has run."""
        partner = self._partner()
        if partner is None:
            return evaluate(model, self.data.test, self.trial.bf16)
        return float(partner["dense_test_accuracy"])

    # ------------------------------------------------------------ pruning

    def _train(self, model: nn.Module, steps: int) -> dict[str, Any]:
        """Train as the variant says, pruning or not: the model, its size, and what happened."""
        trial = self.trial
        example = torch.zeros(1, self.data.in_channels, self.data.image_size, self.data.image_size)
        if trial.variant == "longer":
            self._plain(model, train(model, trial, self.data, trial.training, steps))
            return _unpruned(model, example)
        if trial.variant == "small":
            return self._small(example, steps)
        return self._prune(model, example, steps)

    def _prune(self, model: nn.Module, example: torch.Tensor, steps: int) -> dict[str, Any]:
        """Prune, cut as soon as the host has finished, and train on for the rest of the steps."""
        trial = self.trial
        aimed = trial.with_(budget=self._budget())
        pruning = build(aimed, model, example, steps, self.data.train.epoch(0))
        report, kept = None, []
        made = train(model, trial, self.data, trial.training, steps, pruning=pruning)
        for step in made:
            if report is None and pruning.host.finished:
                kept = _kept(pruning.host)
                report = pruning.host.compact()
            self._note(step.number, float(step.loss), model)
        if report is None:
            raise RuntimeError(
                f"{trial.name}: the budget was not met within {steps} steps; it is a failed run."
            )
        return {
            "model": model,
            "macs_before": report.macs_before,
            "macs_after": report.macs_after,
            "params_before": report.params_before,
            "params_after": report.params_after,
            "kept": kept,
            "max_rel_error": report.max_rel_error,
            "events": _counts(pruning.host.events),
        }

    def _budget(self) -> float:
        """What may remain: for all but the host alone, no more than the host alone kept."""
        if self.trial.variant == "alone":
            return self.trial.budget
        alone = self._alone()
        return float(alone["macs_after"] / alone["macs_before"])

    def _alone(self) -> dict[str, Any]:
        partner = self._partner()
        if partner is None:
            name = self.trial.with_(variant="alone").name
            raise ValueError(f"It is compared with {name}: run that trial first.")
        return partner

    def _partner(self) -> dict[str, Any] | None:
        """The figures of the host alone, if that has run."""
        file = result_file(self._folder, self.trial.with_(variant="alone"))
        if not file.is_file():
            return None
        figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return figures

    def _small(self, example: torch.Tensor, steps: int) -> dict[str, Any]:
        """Train a network of the shape that the host alone ends with, for all steps there were."""
        kept = self._alone()["kept"]
        model = fresh(self.trial, self.data)
        report = cut_to(model, example, kept)
        self._plain(model, from_scratch(model, self.trial, self.data, steps))
        after = _unpruned(model, example)
        return after | {"macs_before": report.macs_before, "params_before": report.params_before}

    def _plain(self, model: nn.Module, made: Iterator[Step]) -> None:
        for step in made:
            self._note(step.number, float(step.loss), model)

    def _latency(self, dense: nn.Module, model: nn.Module) -> dict[str, float]:
        """Milliseconds for one batch, before and after; taken in turns, so the ratio holds."""
        images, _ = next(iter(self.data.train.epoch(0)))
        found = benchmark(dense, model, images, runs=3)
        return {"before_ms": found.before_ms, "after_ms": found.after_ms, "speedup": found.speedup}

    def _note(self, step: int, loss: float, model: nn.Module) -> None:
        """Loss and accuracy at the end of each epoch."""
        if (step + 1) % len(self.data.train):
            return
        accuracy = self._validate(model)
        self.curve.append({"step": step + 1, "loss": loss, "validation_accuracy": accuracy})
        self._say(f"{self.trial.name}: step {step + 1}, validation {accuracy:.2%}")

    def _last_validation(self, model: nn.Module, steps: int) -> float:
        if self.curve and self.curve[-1]["step"] == steps:
            return self.curve[-1]["validation_accuracy"]
        return self._validate(model)

    def _validate(self, model: nn.Module) -> float:
        split = self.data.validation
        return float("nan") if split is None else evaluate(model, split, self.trial.bf16)


def result_file(folder: Path, trial: Trial) -> Path:
    """Where the JSON of a trial is or will be.

    Args:
        folder: Of the study.
        trial: Which.
    """
    return folder / "runs" / f"{trial.name}.json"


def read_data(trial: Trial, data_dir: Path) -> datasets.Data:
    """The data set of a trial, cut down to its limit.

    Args:
        trial: Names it.
        data_dir: Where its files are.

    Raises:
        FileNotFoundError: They are not there; says which files go where.
    """
    size = min(trial.batch_size, trial.limit or trial.batch_size)
    data = datasets.load(trial.task, data_dir, size, trial.seed)
    if trial.limit is None:
        return data

    def first(batches: Batches) -> Batches:
        if not isinstance(batches, MemoryBatches):
            return batches
        n = trial.limit
        size = min(batches.batch_size, n or 1)
        return replace(
            batches, images=batches.images[:n], targets=batches.targets[:n], batch_size=size
        )

    validation = None if data.validation is None else first(data.validation)
    return replace(data, train=first(data.train), validation=validation, test=first(data.test))


def _kept(host: Host) -> list[int]:
    """How many structures of each group are left, before the cut."""
    counts: list[int] = host.cost.keep_counts(host.lifecycle.committed.cpu()).tolist()
    return counts


def _counts(events: list[Event]) -> dict[str, Any]:
    kinds = Counter(event.kind for event in events)
    by_layer = Counter(event.layer for event in events if event.kind == "release")
    return {
        "decayed": kinds["decay"],
        "released": kinds["release"],
        "pruned": kinds["prune"],
        "released_by_layer": dict(sorted(by_layer.items())),
    }


def _unpruned(model: nn.Module, example: torch.Tensor) -> dict[str, Any]:
    """Size of a model that nothing was cut from."""
    structures = trace(copy.deepcopy(model), example)
    cost = CostModel(structures, {name: p.shape for name, p in model.named_parameters()})
    macs, params = cost.macs(cost.sizes), cost.params(cost.sizes)
    return {
        "model": model,
        "macs_before": macs,
        "macs_after": macs,
        "params_before": params,
        "params_after": params,
        "kept": cost.sizes.tolist(),
        "max_rel_error": 0.0,
        "events": _counts([]),
    }
