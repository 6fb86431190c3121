"""Lightning: a callback that prunes a LightningModule while it is fitted."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from decayprune.checkpoint.structure import reshape, structure
from decayprune.cost import Budget
from decayprune.integrations.arguments import calibrating, fitting, moved, two_examples
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.structures.example import ExampleInputs
from decayprune.structures.twin import named_tensors
from decayprune.surgery.compact import CompactionReport

_KEY = "decayprune_structure"
_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy")
_log = logging.getLogger(__name__)


class Prunable:
    """Mixin of a LightningModule: checkpoints of the pruned one load into a dense one.

    Example:
        ```python
        class Model(Prunable, LightningModule): ...

        Model.load_from_checkpoint("pruned.ckpt")
        ```

    It stands before ``LightningModule``. Without it ``fit(ckpt_path=...)`` resumes all the same;
    ``load_from_checkpoint`` and ``save_weights_only=True`` need it.
    """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the structure."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        assert isinstance(self, nn.Module)
        checkpoint[_KEY] = structure(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the noted structure, before weights are loaded."""
        assert isinstance(self, nn.Module)
        if _KEY in checkpoint:
            reshape(self, checkpoint[_KEY])
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]


class DecayPruning(Callback):
    """Prunes the module that a ``Trainer`` fits, and cuts it as soon as that is done.

    Checkpoints hold what it takes to resume, before the cut and after it. Copies of the module that
    other callbacks keep (weight averaging) are cut along. From the cut on, ``ModelCheckpoint`` and
    ``EarlyStopping`` compare pruned models alone.

    Args:
        budget: Upper bounds on what remains.
        schedule: When structures leave, in optimizer steps.
        epochs: ... or how many epochs pruning and recovery may take together; with neither, the
            schedule fits the whole training, and with ``calibrate`` it is at once.
        example_inputs: For one forward pass, as :class:`~decayprune.DecayPruner` takes them; None
            takes the module's ``example_input_array``, or else two examples of the training data,
            of which the first part is the input.
        **options: Further arguments of :class:`~decayprune.DecayPruner`. ``calibrate`` may be a
            number of batches of the training data.

    Attributes:
        pruner: The pruner, once training has begun.
        report: What the cut removed, once it was made.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        schedule: Schedule | None = None,
        epochs: int | None = None,
        example_inputs: ExampleInputs | None = None,
        **options: Any,
    ) -> None:
        if schedule is not None and epochs is not None:
            raise ValueError("Expected schedule= or epochs=, found both: pass one of them.")
        self._budget, self._schedule, self._epochs = budget, schedule, epochs
        self._example_inputs, self._options = example_inputs, options
        self.pruner: DecayPruner | None = None
        self.report: CompactionReport | None = None
        self._saved: Mapping[str, Any] = {}

    # ---------------------------------------------------------------- events of the Trainer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See to it that a checkpoint of after the cut loads into a dense module."""
        strategy: Any = trainer.strategy
        if type(strategy.launcher).__name__ == "_MultiProcessingLauncher":
            raise ValueError(
                "Spawned and forked processes hand their weights back into the dense module of the "
                "one that started them. Use strategy='ddp', and start the script anew per process."
            )
        load = strategy.load_model_state_dict

        # The Trainer loads weights before it asks callbacks, and asks its strategy to do it.
        def reshape_and_load(checkpoint: Mapping[str, Any], strict: bool = True) -> None:
            if _KEY in checkpoint:
                for copy in _copies(trainer, pl_module):
                    reshape(copy, checkpoint[_KEY])
                reshape(pl_module, checkpoint[_KEY])
            load(checkpoint, strict=strict)

        strategy.load_model_state_dict = reshape_and_load

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the strategy as it was."""
        vars(trainer.strategy).pop("load_model_state_dict", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the pruner, or go on with the one of the checkpoint."""
        if self.report is not None or self._saved.get("cut"):
            return
        optimizers = trainer.optimizers
        if len(optimizers) != 1:
            names = ", ".join(type(one).__name__ for one in optimizers) or "none"
            raise ValueError(
                f"DecayPruning expects one optimizer, found {len(optimizers)} ({names}). Build a "
                "decayprune.DecayPruner(self, self.optimizers(), ...) in your module's "
                "on_train_start(), and call its attach()."
            )
        if type(trainer.strategy).__name__ in _SHARDED:
            raise ValueError(
                f"{type(trainer.strategy).__name__} gives no process a whole layer to prune. Prune "
                "with DDP or on one device, and shard the module after the cut."
            )
        if self.pruner is not None:  # of an earlier fit(), with another optimizer
            self.pruner.close()
        weight = next(pl_module.parameters())
        options = calibrating(self._options, trainer.train_dataloader, "DecayPruning", weight)
        self.pruner = DecayPruner(
            pl_module,
            optimizers,
            self._examples(trainer, pl_module),
            budget=self._budget,
            schedule=self._schedule_for(trainer),
            **options,
        )
        if self._saved.get("pruner"):
            self.pruner.load_state_dict(dict(self._saved["pruner"]))
            self._saved = {}
        self.pruner.attach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Read gradients before they are clipped."""
        if self.pruner is not None:
            self.pruner.observe()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Cut as soon as all is done."""
        if self.pruner is None:
            return
        if self.report is None and self.pruner.finished:
            self._cut(trainer, pl_module)
        if trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(self._figures())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if pruning has not ended."""
        if self.pruner is not None and self.report is None:
            _log.warning(
                "Training ended at step %d before pruning did; nothing was cut. Resume the "
                "training, or train for longer.",
                trainer.global_step,
            )

    # ---------------------------------------------------------------- what is saved

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        if self.report is not None or self._saved.get("cut"):
            return {"cut": True}
        return {} if self.pruner is None else {"pruner": self.pruner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there at the start of training."""
        self._saved = state_dict

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the structure."""
        checkpoint[_KEY] = structure(pl_module)

    # ---------------------------------------------------------------- the rest

    def _cut(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.pruner is not None
        strategy: Any = trainer.strategy
        wrapped = strategy.model is not pl_module
        if wrapped:
            strategy.model = pl_module  # a DistributedDataParallel knows the sizes of before
        try:
            self.report = self.pruner.compact(copies=_copies(trainer, pl_module))
        finally:
            if wrapped:
                strategy.configure_ddp()
        for callback in trainer.callbacks:
            _forget_the_dense(callback)
        _log.info("Pruned at step %d.\n%s", trainer.global_step, self.report)

    def _figures(self) -> dict[str, float]:
        assert self.pruner is not None
        decaying = self.pruner.lifecycle.decaying.numel()
        return {
            "macs_left": self.pruner.remaining()["macs"],
            "decaying": 0.0 if self.report else float(decaying),
        }

    def _schedule_for(self, trainer: Trainer) -> Schedule:
        steps = trainer.estimated_stepping_batches
        if self._epochs is not None:
            a_batch_each = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            steps = min(steps, self._epochs * a_batch_each)
        cut_at_once = self._options.get("calibrate") is not None
        if self._schedule is None and not cut_at_once and not 0 < steps < math.inf:
            raise ValueError(
                "The length of this training is not known, so that no schedule fits it: pass "
                "DecayPruning(schedule=...), or a Trainer(max_steps=...)."
            )
        known = int(steps) if 0 < steps < math.inf else 2**62
        return fitting(self._schedule, known, calibrated=cut_at_once)

    def _examples(self, trainer: Trainer, pl_module: LightningModule) -> ExampleInputs:
        examples: Any = self._example_inputs
        if examples is None:
            examples = pl_module.example_input_array
        if examples is None:
            examples = two_examples(trainer.train_dataloader, "DecayPruning")
            if isinstance(examples, (tuple, list)):
                examples = examples[0]
        dtype = next(pl_module.parameters()).dtype
        return moved(examples, pl_module.device, dtype)


def _copies(trainer: Trainer, pl_module: LightningModule) -> list[nn.Module]:
    """Copies of the module that callbacks keep, with weights of their own."""
    found = []
    for callback in trainer.callbacks:
        for value in vars(callback).values():
            held = getattr(value, "module", value)
            if isinstance(held, nn.Module) and _is_copy(held, pl_module):
                found.append(held)
    return found


def _is_copy(other: nn.Module, pl_module: LightningModule) -> bool:
    ours, theirs = named_tensors(pl_module), named_tensors(other)
    return ours.keys() == theirs.keys() and all(
        theirs[name] is not tensor and theirs[name].shape == tensor.shape
        for name, tensor in ours.items()
    )


def _forget_the_dense(callback: Callback) -> None:
    """A dense model, however good, is not what is being looked for."""
    if isinstance(callback, ModelCheckpoint):
        callback.best_k_models = {}
        callback.best_model_score = None
        callback.best_model_path = callback.kth_best_model_path = ""
    if isinstance(callback, EarlyStopping):
        worst = math.inf if callback.mode == "min" else -math.inf
        callback.best_score, callback.wait_count = torch.tensor(worst, device="cpu"), 0
