"""Hugging Face transformers: a callback for the Trainer, pruned folders for ``from_pretrained``.

Importing this module is what lets ``AutoModel....from_pretrained(folder)`` load a pruned model: it
registers a "quantizer" that reshapes the empty model before transformers fills it.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.trainer_callback import ExportableState
from transformers.utils.quantization_config import QuantizationConfigMixin

from decayprune.checkpoint import fields
from decayprune.checkpoint.structure import reshape, saved_tensors, shapes_of, structure
from decayprune.compensation.batches import inputs_of
from decayprune.cost import Budget
from decayprune.integrations.arguments import calibrating, fitting, moved, two_examples
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.structures.example import ExampleInputs
from decayprune.structures.wrappers import set_aside
from decayprune.surgery.compact import CompactionReport

_METHOD = "decayprune"
_log = logging.getLogger(__name__)


# ---------------------------------------------------------------- save_pretrained, from_pretrained


@register_quantization_config(_METHOD)
class PrunedConfig(QuantizationConfigMixin):  # transformers has no other place for such a hook
    """The structure of a pruned model, as ``config.json`` holds it under ``quantization_config``.

    Args:
        structure: What :func:`decayprune.structure` returned.
        quant_method: The name that transformers finds it by.
    """

    def __init__(self, structure: dict[str, Any], quant_method: str = _METHOD) -> None:
        self.quant_method, self.structure = quant_method, structure


@register_quantizer(_METHOD)
class Reshaper(HfQuantizer):
    """Reshapes a model before transformers loads its weights; nothing is quantized."""

    def preprocess_model(self, model: nn.Module, **kwargs: Any) -> None:
        """Give the empty model the saved shapes."""
        reshape(model, _seen_from(model, self.quantization_config.structure))

    def postprocess_model(self, model: Any, **kwargs: Any) -> None:
        """Leave an ordinary model behind, whose configuration remembers the structure."""
        mark(model)
        model.hf_quantizer = None

    def is_serializable(self) -> bool:
        """Whether it can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether it can be trained."""
        return True


def mark(model: nn.Module) -> None:
    """Note the structure of a model in its configuration, so that ``save_pretrained`` saves it.

    Args:
        model: A model of transformers, usually compacted; a wrapped one is left alone.

    Raises:
        ValueError: It is quantized.
    """
    config: Any = model.config
    known = getattr(config, "quantization_config", None)
    if known is not None and not isinstance(known, PrunedConfig):
        raise ValueError(
            "This model is quantized already, and one configuration cannot say both. Prune and "
            "save the model first, and quantize what from_pretrained() returns."
        )
    config.quantization_config = PrunedConfig(structure(model))


def save_pretrained(model: nn.Module, folder: str | os.PathLike[str], **kwargs: Any) -> None:
    """Save a pruned model so that ``from_pretrained(folder)`` loads it, with equal logits.

    Whoever loads it imports ``decayprune.integrations.transformers`` first.

    Args:
        model: A model of transformers, usually compacted.
        folder: Where.
        **kwargs: Passed on to the model's own ``save_pretrained``.

    Raises:
        TypeError: It is no model of transformers.
        ValueError: It is quantized.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            "save_pretrained(model, folder) takes a transformers.PreTrainedModel; found "
            f"{type(model).__name__}. Save other modules with decayprune.save(folder, model)."
        )
    mark(model)
    model.save_pretrained(folder, **kwargs)


def _seen_from(model: nn.Module, said: Mapping[str, Any]) -> dict[str, Any]:
    """A structure in the names of this model: one with a head knows its base model by a prefix."""
    fields.check(said, "The structure in config.json", "save_pretrained()", "Save the model again.")
    shapes, prefix = shapes_of(said), f"{getattr(model, 'base_model_prefix', '')}."

    def there(name: str, known: Mapping[str, Any]) -> str:
        others = (name, prefix + name, name.removeprefix(prefix))
        return next((other for other in others if other in known), name)

    tensors = {
        name: {"shape": shapes[there(name, shapes)], "dtype": str(value.dtype)}
        for name, value in saved_tensors(model).items()
        if there(name, shapes) in shapes
    }
    modules = {
        name: said["modules"][there(name, said["modules"])]
        for name, _ in model.named_modules()
        if there(name, said["modules"]) in said["modules"]
    }
    return {**said, "tensors": tensors, "tied": {}, "modules": modules}


# ---------------------------------------------------------------- the Trainer


class DecayPruningCallback(TrainerCallback, ExportableState):
    """Prunes the model of a ``Trainer`` while it trains, and cuts it as soon as that is done.

    Checkpoints hold what it takes to resume, before the cut and after it. From the cut on, the
    best model is looked for among the pruned ones.

    Args:
        budget: Upper bounds on what remains.
        example_inputs: For one forward pass, as :class:`~decayprune.DecayPruner` takes them;
            None takes two examples of the training data, without their labels.
        schedule: When structures leave, in optimizer steps; None fits the length of the training,
            and is at once with ``calibrate``.
        **options: Further arguments of :class:`~decayprune.DecayPruner`. ``calibrate`` may be a
            number of batches of the training data.

    Attributes:
        pruner: The pruner, once training has begun.
        report: What the cut removed, once it was made.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        example_inputs: ExampleInputs | None = None,
        schedule: Schedule | None = None,
        **options: Any,
    ) -> None:
        self._budget, self._example_inputs, self._schedule = budget, example_inputs, schedule
        self._options = options
        self.pruner: DecayPruner | None = None
        self.report: CompactionReport | None = None
        self._cut_before: dict[str, Any] | None = None

    # ---------------------------------------------------------------- events of the Trainer

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Let a checkpoint of after the cut load into the dense model of this script."""
        if model is not None:
            model.register_load_state_dict_pre_hook(partial(_fit_to_weights, args.output_dir))

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **others: Any
    ) -> None:
        """Build the pruner, or go on with the one of the checkpoint."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if isinstance(saved, list):
            saved = saved[-1]
        self._cut_before = saved.get("structure")
        if self.report is not None or self._cut_before is not None:
            return
        if self._budget is None:
            raise ValueError(
                "Expected DecayPruningCallback(budget=...), found no budget. With "
                "restore_callback_states_from_checkpoint=True the Trainer builds callbacks anew, "
                "without their arguments: leave it False, this callback resumes by itself."
            )
        if args.deepspeed is not None:
            raise ValueError(
                "DeepSpeed keeps the weights in buffers of its own, where nothing can be cut. "
                "Train without it while pruning, and use it after the cut."
            )
        if self.pruner is not None:  # of an earlier train(), with another optimizer
            self.pruner.close()
        example, loader = self._example_inputs, others.get("train_dataloader")
        if example is None:
            example = _inputs_of(model, two_examples(loader, type(self).__name__))
        weight = next(model.parameters())
        options = calibrating(self._options, loader, type(self).__name__, weight)
        self.pruner = DecayPruner(
            model,
            others["optimizer"],
            example,
            budget=self._budget,
            schedule=fitting(
                self._schedule, state.max_steps, calibrated=options.get("calibrate") is not None
            ),
            **options,
        )
        if saved.get("pruner"):
            self.pruner.load_state_dict(_decoded(saved["pruner"]))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Follow the optimizer's step, before gradients are zeroed."""
        if self.pruner is not None:
            self.pruner.step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Cut as soon as all is done."""
        if self.report is None and self.pruner is not None and self.pruner.finished:
            self._cut(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say so if pruning has not ended."""
        if self.pruner is not None and self.report is None:
            _log.warning(
                "Training ended at step %d before pruning did; nothing was cut. Resume the "
                "training, or train for longer.",
                state.global_step,
            )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Add the share of MACs that remain."""
        if logs is not None and self.pruner is not None:
            logs["macs_left"] = self.pruner.remaining()["macs"]
            state.log_history[-1]["macs_left"] = logs["macs_left"]

    # ---------------------------------------------------------------- the cut, and what is saved

    def compact(self, trainer: Any) -> CompactionReport:
        """The report of the cut, which is made while training, in each of several processes.

        Args:
            trainer: Of this callback.

        Raises:
            RuntimeError: Training has not begun, or pruning has not finished.
        """
        if self.pruner is None:
            raise RuntimeError("compact() before training has begun: call trainer.train() first.")
        if self.report is None:
            self._cut(trainer.state)
        assert self.report is not None
        return self.report

    def _cut(self, state: Any) -> None:
        assert self.pruner is not None
        with set_aside(self.pruner.model):  # the Trainer's loop holds the wrapper
            self.report = self.pruner.compact()
        if isinstance(self.pruner.model, PreTrainedModel):
            mark(self.pruner.model)
        # A dense model, however good, is not what is being looked for.
        state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        _log.info("Pruned at step %d.\n%s", state.global_step, self.report)

    def state(self) -> dict[str, Any]:
        """What ``trainer_state.json`` holds of it."""
        found: dict[str, Any] = {"args": {}, "attributes": {}}
        if self.report is not None and self.pruner is not None:
            return found | {"structure": structure(self.pruner.model)}
        if self._cut_before is not None:
            return found | {"structure": self._cut_before}
        return found | ({} if self.pruner is None else {"pruner": _encoded(self.pruner)})


def _inputs_of(model: nn.Module, batch: Mapping[str, Any]) -> ExampleInputs:
    """A batch without its labels, where the model is."""
    weight = next(model.parameters())
    return moved(inputs_of(batch, {}), weight.device, weight.dtype)


def _encoded(pruner: DecayPruner) -> str:
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    return base64.b64encode(file.getvalue()).decode()


def _decoded(text: str) -> dict[str, Any]:
    file = io.BytesIO(base64.b64decode(text))
    found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def _fit_to_weights(
    folder: str, model: nn.Module, weights: Mapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Reshape a dense model that is about to get the weights of a pruned one.

    The Trainer loads weights before it asks any callback, and does not say where from. So the
    structure is looked for in its output folder: the one whose shapes are those of the weights.
    """
    own = {} if prefix else saved_tensors(model)
    wanted = {name: list(value.shape) for name, value in weights.items() if name in own}
    if all(list(own[name].shape) == shape for name, shape in wanted.items()):
        return
    for path in sorted(Path(folder).glob("checkpoint-*/trainer_state.json")):
        try:
            said = json.loads(path.read_bytes())["stateful_callbacks"]
            said = said[DecayPruningCallback.__name__]["structure"]
            fields.check(said, str(path), "a Trainer that pruned", "Remove that checkpoint.")
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another run, or of before the cut
        shapes = shapes_of(said)
        if all(shapes.get(name) == shape for name, shape in wanted.items()):
            reshape(model, said)
            if isinstance(model, PreTrainedModel):
                mark(model)
            return
