"""Ultralytics YOLO: ``prune(yolo, budget=...)``, and a ``YOLO`` whose pruned models stay pruned.

Ultralytics builds every model it trains from its YAML, so that training a pruned checkpoint would
quietly begin with a dense model again. :class:`PrunedYOLO` trains what it was given.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.utils.torch_utils import EarlyStopping

from decayprune.cost import Budget
from decayprune.integrations.arguments import calibrating, fitting
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.surgery.compact import CompactionReport

_log = logging.getLogger(__name__)


def prune(
    yolo: YOLO,
    *,
    budget: Budget,
    schedule: Schedule | None = None,
    pruning: dict[str, Any] | None = None,
    **train: Any,
) -> CompactionReport:
    """Train a YOLO as ``yolo.train(...)`` does, and prune it meanwhile.

    The model is cut, its moving average along, at the end of the first epoch in which all is done;
    the rest of the epochs fine-tune. Only from then on the best checkpoint is looked for, and only
    from then on training may stop early. Afterwards ``yolo`` is a :class:`PrunedYOLO` with the
    best pruned weights, and its ``best.pt`` loads and exports with plain ultralytics.

    Args:
        yolo: A trained model, usually: ``YOLO("yolo11n.pt")``.
        budget: Upper bounds on what remains, of MACs at the size of images that is trained on.
        schedule: When structures leave, in optimizer steps; None fits ``epochs``, and is at once
            with ``calibrate``.
        pruning: Further arguments of :class:`~decayprune.DecayPruner`, by name. ``calibrate`` may
            be a number of batches of the training data.
        **train: Arguments of ``yolo.train``: ``data``, ``epochs``, ``imgsz``, ...

    Returns:
        What the cut removed; metrics are in ``yolo.metrics``.

    Raises:
        TypeError: ``yolo`` is no ultralytics ``YOLO``.
        ValueError: Several devices, ``time``, ``resume`` or several data sets are asked for, or
            the training is too short for the schedule.
        RuntimeError: Something stopped the training before the cut.
    """
    if type(yolo) not in (YOLO, PrunedYOLO):
        raise TypeError(
            "prune(yolo, budget=...) takes an ultralytics.YOLO; found "
            f"{type(yolo).__name__}. Prune other models with decayprune.DecayPruner in a loop."
        )
    for name in ("time", "resume", "trainer"):
        if train.get(name):
            raise ValueError(
                f"prune() cannot train with {name}={train[name]!r}: it has to know its epochs from "
                "the first to the last. Give epochs=... instead."
            )
    if isinstance(train.get("data"), (list, tuple)):
        raise ValueError("prune() trains on one data set; found several. Call it with one of them.")
    base = YOLO.task_map.fget(yolo)[yolo.task]["trainer"]
    settings = {"budget": budget, "schedule": schedule, "pruning": dict(pruning or {})}
    trainer = type("PruningTrainer", (_Pruning, base), settings)
    yolo.train(trainer=trainer, **train)
    yolo.__class__ = PrunedYOLO
    if yolo.trainer.report is None:
        raise RuntimeError(
            "Training ended before pruning did (something stopped it), and nothing was cut. Train "
            "for all epochs."
        )
    report: CompactionReport = yolo.trainer.report
    return report


class PrunedYOLO(YOLO):
    """A ``YOLO`` whose ``train()`` goes on with the layers of its checkpoint, pruned as they are.

    Everything else (``predict``, ``val``, ``export``) is ultralytics' own.
    """

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """As that of ``YOLO``, with trainers that keep the model."""
        known: dict[str, dict[str, Any]] = super().task_map
        return {
            task: {**parts, "trainer": type("Trainer", (_Keeping, parts["trainer"]), {})}
            for task, parts in known.items()
        }


class _Keeping:
    """For a trainer: a pruned model is trained as it is, and not built anew from its YAML."""

    def train(self: Any) -> Any:
        if self.world_size > 1:  # other processes would make a trainer of ultralytics' own
            raise ValueError(
                f"A model is pruned, or a pruned one trained, on one device; found "
                f"{self.world_size}. Give one: device=0."
            )
        return super().train()  # type: ignore[misc]

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        if weights is None or not _is_pruned(weights):
            model: nn.Module = super().get_model(cfg, weights, verbose)  # type: ignore[misc]
            return model
        wanted, found = self.data["nc"], weights.yaml["nc"]  # type: ignore[attr-defined]
        if wanted != found:
            raise ValueError(
                f"This pruned model tells {found} classes apart, and the data set has {wanted}. "
                "Train the dense model on the data set first, and prune it there."
            )
        pruned: nn.Module = copy.deepcopy(weights)
        return pruned.float().train().requires_grad_(True)


def _is_pruned(weights: nn.Module) -> bool:
    """Whether a model has other shapes than its own YAML makes."""
    dense: nn.Module = type(weights)(copy.deepcopy(weights.yaml), verbose=False)
    shapes = {name: value.shape for name, value in dense.state_dict().items()}
    return any(shapes.get(n, v.shape) != v.shape for n, v in weights.state_dict().items())


class _Pruning(_Keeping):
    """For a trainer: a pruner beside its optimizer, and the cut at the end of an epoch."""

    budget: Budget
    schedule: Schedule | None
    pruning: dict[str, Any]
    report: CompactionReport | None = None

    def _setup_train(self: Any) -> None:
        super()._setup_train()  # type: ignore[misc]
        steps = len(self.train_loader) * self.epochs // max(self.accumulate, 1)
        options = self._calibrating()
        calibrated = options.get("calibrate") is not None
        schedule = self.schedule or fitting(None, max(steps, 1), calibrated=calibrated)
        if schedule.stop + schedule.decay_steps > steps:
            raise ValueError(
                f"The schedule stops at {schedule.stop} and decays last {schedule.decay_steps} "
                f"steps, but {self.epochs} epochs have {steps} optimizer steps. Give more epochs, "
                "a smaller batch or nbs, or a shorter schedule."
            )
        example = torch.rand(
            1, self.data["channels"], self.args.imgsz, self.args.imgsz, device="cpu"
        )
        self.pruner = DecayPruner(
            self.model,
            self.optimizer,
            example.to(self.device),
            budget=self.budget,
            schedule=schedule,
            **options,
        )
        self.pruner.attach()
        self.stopper.patience = math.inf  # nothing may stop before the cut
        self.add_callback("on_train_epoch_end", type(self)._cut)

    def _calibrating(self: Any) -> dict[str, Any]:
        """The pruner's arguments, with images in place of a number of batches."""
        weight = next(self.model.parameters())
        options = calibrating(self.pruning, self.train_loader, "prune(pruning={...})", weight)
        if options.get("calibrate") is not self.pruning.get("calibrate"):
            images = [self.preprocess_batch(batch)["img"].cpu() for batch in options["calibrate"]]
            options["calibrate"] = images
        return options

    def _cut(self: Any) -> None:
        if self.report is not None or not self.pruner.finished:
            return
        self.report = self.pruner.compact(copies=[self.ema.ema])
        self.ema._pairs = None  # it remembers tensors of the old shapes
        for model in (self.model, self.ema.ema):
            _correct_sizes(model)
        # A dense model, however good, is not what is being looked for.
        self.best_fitness = None
        self.best.unlink(missing_ok=True)
        self.stopper = EarlyStopping(patience=self.args.patience)
        _log.info("Pruned in epoch %d.\n%s", self.epoch + 1, self.report)


def _correct_sizes(model: nn.Module) -> None:
    """Widths that C2f blocks note for ``forward_split()``, which exporters call instead."""
    for module in model.modules():
        if hasattr(module, "forward_split"):
            block: Any = module
            block.c = block.cv1.conv.out_channels // 2
