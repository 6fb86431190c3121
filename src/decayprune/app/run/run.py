"""The main job: train, decay-prune, cut, fine-tune, check, save.

A run is a line of phases over one count of optimizer steps. Its whole state is (phase, step, model,
optimizer, pruner, a few figures), saved now and then; entered from such a state it goes on bit for
bit. The compact model is not rebuilt from its shapes: a resumed run loads the last uncut state and
cuts it again, which gives the same result.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import decayprune as dp
from decayprune.app.run import methods, subject, summary
from decayprune.app.run.batches import to_device
from decayprune.app.run.decaylog import DecayLog
from decayprune.app.run.loop import Step, cosine, evaluate, train_steps
from decayprune.app.run.objective import forward, objective
from decayprune.app.run.plan import plan
from decayprune.app.run.runfolder import RunFolder
from decayprune.app.run.settings import Settings
from decayprune.latency.benchmark import Latency
from decayprune.one_shot import stand_still

_LOG_LINES = 2000
# A batch large enough that the work outweighs the calls, small enough to be timed in seconds.
_LATENCY_BATCH, _LATENCY_VALUES = 128, 100_000
_LATENCY_RUNS = 15  # and up to four times as many while they do not agree


class Interrupted(Exception):  # noqa: N818
    """The run was asked to stop; its checkpoint is written."""


class Watch(Protocol):
    """Who looks on: the command shows bars, tests count."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A part of the run begins that has ``total`` ticks, of which some are done already."""

    def tick(self, note: str = "") -> None:
        """One tick of the current part is over."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Run:
    """One run of the main job.

    Args:
        settings: Resolved.
        folder: Where everything is written.
        watch: Told of every phase and step.
        command: What was typed, for the report; a resumed run keeps the first.
        save_every: Seconds between checkpoints.
        stop: Asked after each step; when true, the run saves and raises :class:`Interrupted`.
    """

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        watch: Watch,
        *,
        command: str = "",
        save_every: float = 30.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings, self.folder, self.watch = settings, folder, watch
        self._save_every, self._stop = save_every, stop
        torch.set_num_threads(settings.threads or 1)
        self.data = subject.read_data(settings)
        self.model = subject.fresh_model(settings, self.data)
        self.example = subject.example(settings, self.data, 1)
        self.timed = subject.example(settings, self.data, _latency_batch(self.example))
        self.objective = objective(settings.loss, settings.metric)
        self.optimizer = subject.optimizer(settings, self.model)
        self.distill: dp.Distill | None = None
        epoch = len(self.data.train)
        self.dense_steps = epoch * (settings.epochs or 0)
        self.total_steps = self.dense_steps + epoch * (
            (settings.prune_epochs or 0) + (settings.finetune_epochs or 0)
        )
        self.schedule = settings.schedule(epoch)
        self.phase, self.step = "train", 0
        self.figures: dict[str, Any] = {
            "seconds": 0.0,
            "command": command,
            "metric": self.objective.name,
            "judged_on": self.data.judged_on,
        }
        self.pruner: methods.Pruning | None = None
        self._counted = self._saved = time.monotonic()

    # ------------------------------------------------------------ the line of phases

    def check(self) -> None:
        """Try what may be refused, which should be known before hours of dense training.

        Raises:
            ValueError: The host refuses the model or the budget, or the model the loss.
            TypeError: Something of the user's returns another thing than it should.
        """
        trial = subject.fresh_model(self.settings, self.data)
        taught = subject.teacher(self.settings, self.data, copy.deepcopy(trial))
        next(iter(self.data.train.epoch(0)))
        inputs, targets = next(iter(self.data.test.epoch(0)))
        device = next(trial.parameters()).device
        with torch.no_grad():
            outputs = forward(trial.eval(), to_device(inputs, device))
            self.objective.loss(outputs, to_device(targets, device))
            if taught is not None:
                inputs = to_device(inputs, device)
                dp.Distill(taught, None, weight=1)(outputs, None, inputs)
            self.objective.metric(outputs, to_device(targets, device))
        trial.train()
        self._new_pruner(trial, subject.optimizer(self.settings, trial), watched=1)

    def start(self) -> dict[str, Any]:
        """Begin anew and run to the end; :meth:`check` first.

        Returns:
            The report.
        """
        self.folder.begin(self.settings.to_dict())
        self._save()
        return self._go()

    def resume(self) -> dict[str, Any]:
        """Go on from the folder's checkpoint to the end.

        Returns:
            The report.
        """
        if self.folder.finished:
            return self.folder.report()
        if not self.folder.unfinished:  # killed before its first checkpoint
            return self.start()
        state = self.folder.load()
        self.phase = state["phase"]
        if self.phase == "finetune":
            self._restore(self.folder.load(before_cut=True))
            if self.pruner is not None:
                self._cut(self.pruner)
        self._restore(state)
        return self._go()

    def _go(self) -> dict[str, Any]:
        if self.phase == "train":
            self._train_dense()
        if self.phase == "prune":
            self._prune()
        self._finetune()
        return self._finish()

    def _train_dense(self) -> None:
        self._train("train", 0, self.dense_steps)
        self.figures["accuracy_before"] = self._evaluate("accuracy before")
        self._doubt()
        self.phase = "prune"
        self._save()

    def _prune(self) -> None:
        pruner = self.pruner
        if pruner is None:
            pruner = self._enter()
            planned = summary.planned(pruner, self.dense_steps)
            self.figures |= {"decayed": 0, "released": 0, **planned}
        if not self.settings.prune_epochs and not pruner.host.finished:
            stand_still(self.optimizer, pruner.step)  # what is picked needs no training
        until = self.dense_steps + self.schedule.stop + self.schedule.decay_steps
        # A step whose gradients are not finite delays the decay: there is time till the very end.
        self._train("prune", self.dense_steps, until, at_most=self.total_steps)
        if not pruner.host.finished:
            steps = self.step - self.dense_steps
            raise RuntimeError(
                f"The budget was not met by step {self.step}, the last one: "
                f"{pruner.host.remaining()['macs']:.1%} of the MACs remain, and in "
                f"{steps - pruner.host.steps} of {steps} steps the gradients were infinite or NaN. "
                "Check the data, lower --lr or raise --prune-epochs."
            )
        self._save(before_cut=True)
        self._cut(pruner)
        self._save()

    def _cut(self, pruner: methods.Pruning) -> None:
        self.watch.phase("cut", 1, 0)
        cut = summary.compacted(pruner.host.compact())
        self.figures |= cut | {"cut_at": self.step}
        self.pruner, self.phase = None, "finetune"
        self.watch.tick()

    def _finetune(self) -> None:
        self._train("finetune", self.figures["cut_at"], self.total_steps)

    def _finish(self) -> dict[str, Any]:
        accuracy = self._evaluate("accuracy after")
        self.watch.phase("measure and check", 2, 0)
        dense = subject.fresh_model(self.settings, self.data)
        compiled = self.settings.target == "compiled"
        latency = _on_one_thread(dense, self.model, self.timed, compiled)
        self.watch.tick()
        dp.save(self.folder.path, self.model)
        summary.check_saved(self.folder.path, dense, self.model, self.timed)
        self.watch.tick()
        self._clock()
        report = summary.report(self.settings, self.figures | {"accuracy_after": accuracy}, latency)
        self.folder.finish(report)
        return report

    # ------------------------------------------------------------ steps

    def _doubt(self) -> None:
        """Say so if the dense model has not been trained to what it could do."""
        if self.settings.new_head:
            self.watch.note(
                f"The dense model has a new head, trained for --epochs {self.settings.epochs}: its "
                "accuracy is not what it could have reached."
            )
            return
        classes = self.data.num_classes or self._outputs()
        right = self.figures["accuracy_before"]
        if self.dense_steps or self.objective.name != "accuracy" or right > 1.5 / max(classes, 1):
            return
        self.watch.note(
            f"The dense model is right on {right:.1%} of {self.data.judged_on}, no better than "
            "guessing, and --epochs is 0: the model is untrained. Give its --weights, or --epochs "
            "to train it first."
        )

    def _outputs(self) -> int:
        with torch.no_grad():
            found = forward(self.model.eval(), self.example)
        return int(getattr(found, "logits", found).shape[-1])

    def _new_pruner(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, watched: int | None = None
    ) -> methods.Pruning:
        """A pruner; if it calibrates, on so many batches, or on as many as the settings say."""
        steps = self.total_steps - self.dense_steps
        batches = itertools.islice(self.data.train.epoch(0), watched or self.settings.calibrate)
        inputs = (inputs for inputs, _ in batches)
        # A budget of time is one of the time that the report will show.
        example = self.example if self.settings.latency_budget is None else self.timed
        wanted = plan(self.settings, self.schedule, steps, model, example, inputs)
        return methods.build(wanted, model, example, optimizer)

    def _enter(self) -> methods.Pruning:
        """Begin to prune: from now on the host may be the optimizer."""
        teacher = subject.teacher(self.settings, self.data, copy.deepcopy(self.model))
        if teacher is not None:
            self.distill = dp.Distill(teacher, self.objective.loss)
        self.pruner = self._new_pruner(self.model, self.optimizer)
        self.optimizer = self.pruner.optimizer
        return self.pruner

    def _evaluate(self, name: str) -> float:
        self.watch.phase(name, len(self.data.test), 0)
        bf16 = bool(self.settings.bf16)
        return evaluate(self.model, self.data.test, bf16, self.watch.tick, self.objective)

    def _rate(self, step: int) -> float:
        """A fall of the learning rate; after a dense training another one, at half."""
        dense, peak = self.dense_steps, self.settings.peak_lr
        if step < dense:
            return cosine(step, 0, dense, peak)
        return cosine(step, dense, self.total_steps, peak / 2 if dense else peak)

    def _train(self, phase: str, begin: int, end: int, at_most: int | None = None) -> None:
        """Train to step ``end``; while pruning, until the pruner has finished."""
        self.watch.phase(phase, end - begin, self.step - begin)
        log = DecayLog(self.folder, self.pruner, self.figures) if self.pruner else None
        steps = train_steps(
            self.model,
            self.optimizer,
            self.data.train,
            start=self.step,
            stop=at_most or end,
            lr=self._rate,
            seed=self.settings.seed,
            bf16=bool(self.settings.bf16),
            pruner=self.pruner,
            objective=self.objective,
            distill=self.distill,
        )
        if self.pruner is not None and self.pruner.host.finished:
            return
        for step in steps:
            self.step = step.number + 1
            if log is not None:
                log.write(self.step)
            self._record(phase, step)
            if self.pruner is not None and self.pruner.host.finished:
                break
            self._pause()

    def _record(self, phase: str, step: Step) -> None:
        """One line of history, now and then; the accuracy at the end of each epoch."""
        epoch_over = self.step % len(self.data.train) == 0
        if not epoch_over and self.step % max(1, self.total_steps // _LOG_LINES):
            self.watch.tick()
            return
        row: dict[str, Any] = {"step": self.step, "phase": phase, "loss": float(step.loss)}
        row["lr"] = step.lr
        note = f"loss {row['loss']:.3f}"
        if self.pruner is not None:
            row["committed"] = self.pruner.host.remaining()["macs"]
        if epoch_over:
            bf16 = bool(self.settings.bf16)
            if self.objective.name != "accuracy":
                row["metric"] = self.objective.name
            row["accuracy"] = evaluate(self.model, self.data.test, bf16, objective=self.objective)
            name = self.objective.name
            note += f", {name} {row['accuracy']:{'.1%' if name == 'accuracy' else '.4g'}}"
        self.folder.append("history.jsonl", [row])
        self.watch.tick(note)

    # ------------------------------------------------------------ state

    def _pause(self) -> None:
        if self._stop():
            self._save()
            raise Interrupted
        if time.monotonic() - self._saved >= self._save_every:
            self._save()

    def _clock(self) -> float:
        """Count the time since the last look into the run's seconds."""
        now = time.monotonic()
        self.figures["seconds"] += now - self._counted
        self._counted = now
        return now

    def _save(self, *, before_cut: bool = False) -> None:
        self._saved = self._clock()
        state = {
            "phase": self.phase,
            "step": self.step,
            "figures": copy.deepcopy(self.figures),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pruner": None if self.pruner is None else self.pruner.state_dict(),
        }
        if self.settings.teacher == "dense" and self.distill is not None:
            state["teacher"] = self.distill.teacher.state_dict()
        self.folder.save(state, before_cut=before_cut)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.step, self.figures = state["step"], dict(state["figures"])
        if state["pruner"] is not None:
            # A host may gate or cut the model, and may be the optimizer: it comes first.
            self._enter().load_state_dict(state["pruner"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.distill is not None and "teacher" in state:
            self.distill.teacher.load_state_dict(state["teacher"])


def _on_one_thread(dense: nn.Module, model: nn.Module, example: Any, compiled: bool) -> Latency:
    """Time two models by what the processor does for them, whoever else is at work there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return dp.benchmark(dense, model, example, runs=_LATENCY_RUNS, compiled=compiled)
    finally:
        torch.set_num_threads(threads)


def _latency_batch(one: Any) -> int:
    """Examples of a forward pass that is timed."""
    values = sum(int(part.numel()) for part in tree_leaves(one))
    return max(1, min(_LATENCY_BATCH, _LATENCY_VALUES // max(1, values)))
