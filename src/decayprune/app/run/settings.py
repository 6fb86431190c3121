"""Every choice of a run, in one flat record that is kept in its folder and read back on resume.

Each field is an option of ``decayprune prune`` and carries its own words: the command, its help and
``docs/command.md`` are made from this record, and so is the file that ``--config`` reads.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from decayprune.app.run import checks
from decayprune.app.run.methods import HOSTS, VARIANTS
from decayprune.app.run.models import MODELS
from decayprune.selection.schedule import Schedule

DATA_DIR = Path.home() / ".cache" / "decayprune"
"""Where data sets are looked for and downloaded to unless the user says otherwise."""

SAME_WORDS = {"torch-pruning": "depgraph", "sp+sr": "sp_sr", "self": "dense"}
"""Other spellings: of version 0.1, which scripts and folders of runs still have; of a teacher."""

WHAT, HOW, WHERE = "What is pruned", "How", "Where and when"
"""Panels of the help."""

T = TypeVar("T")


def _option(default: T, words: str, panel: str = HOW, metavar: str | None = None) -> T:
    """A field that is an option of the command.

    Args:
        default: Of the field; None: what suits the data, said in the words.
        words: The help.
        panel: Where the help lists it.
        metavar: What the help shows for a value; None: by its type.
    """
    metadata = {"help": words, "panel": panel, "metavar": metavar}
    return field(default=default, metadata=metadata)


class _Defaults(NamedTuple):
    model: str | None
    epochs: int
    prune_epochs: int
    finetune_epochs: int
    batch_size: int | None
    bf16: bool  # where the processor has units for it
    threads: int | None = None  # None: torch's own choice
    round_to: str | None = None  # of the model that is named here, at the usual budget


# One thread where layers are so small that several would wait for each other longer than they
# work, for ever so long on a busy machine.
# Few epochs where a laptop should finish over a cup of coffee; the usual 200 and 90 in all on
# CIFAR and ImageNet, which want a GPU.
_BY_DATASET = {
    "digits": _Defaults("resnet8_wide", 4, 4, 2, 64, False, threads=1, round_to="32"),
    "fashion-mnist": _Defaults("resnet20", 3, 2, 2, 128, True),
    "cifar10": _Defaults("resnet56", 100, 60, 40, 128, True),
    "cifar100": _Defaults("vgg19", 100, 60, 40, 128, True),
    "imagenet": _Defaults("torchvision.models:resnet50", 40, 30, 20, 256, True),
}
_OWN_LOADERS = _Defaults(None, 10, 6, 4, None, False)
_OWN_IMAGES = _Defaults(None, 10, 6, 4, 32, False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``decayprune prune`` was asked to do; None means: what suits the data and the model."""

    model: str | None = _option(
        None,
        "torchvision:NAME or timm:NAME; pkg.mod:factory, your function that returns a model; or "
        f"one of ours: {', '.join(MODELS)}. Arguments follow as in NAME?argument=value. Default: "
        "what suits --dataset.",
        WHAT,
        "NAME",
    )
    weights: str | None = _option(
        None,
        "Trained weights: a .safetensors, .pt or .ckpt file, or a folder that save_pretrained "
        "wrote.",
        WHAT,
        "PATH",
    )
    new_head: bool = _option(
        False,
        "The weights are of other classes: the one layer that does not fit is drawn anew.",
        WHAT,
    )
    data: str | None = _option(
        None,
        "A folder of images, one folder per class; or pkg.mod:loaders, your function that returns "
        "(train_loader, test_loader).",
        WHAT,
        "FOLDER",
    )
    dataset: str = _option(
        "digits", f"Without --data: one of {', '.join(_BY_DATASET)}.", WHAT, "NAME"
    )
    data_dir: str = _option(str(DATA_DIR), "Where files of --dataset are.", WHAT, "FOLDER")
    image_size: int | None = _option(
        None, "Height and width that images of a folder are brought to. Default: 224.", WHAT
    )
    loss: str | None = _option(
        None,
        "pkg.mod:function, called with (outputs, targets). Default: cross-entropy of logits.",
        WHAT,
        "NAME",
    )
    metric: str | None = _option(
        None,
        "What the model is judged by: accuracy, loss, or pkg.mod:function, called with (outputs, "
        "targets). Default: accuracy; with --loss that loss.",
        WHAT,
        "NAME",
    )
    teacher: str | None = _option(
        None,
        "Whose logits are imitated as well: dense (or self), the model as it was before pruning; "
        "or a model as in --model.",
        WHAT,
        "NAME",
    )
    budget: float | None = _option(
        None,
        "Share of the MACs that remains. Default: 50%, if no other budget is given.",
        HOW,
        "SHARE",
    )
    params_budget: float | None = _option(
        None, "Share of the parameters that remains.", HOW, "SHARE"
    )
    latency_budget: float | None = _option(
        None, "Share of the time of a forward pass that remains, measured here.", HOW, "SHARE"
    )
    depth: float | None = _option(
        None,
        "Share of the residual branches (attentions, FFNs, blocks) that remains: the rest leaves "
        "whole, and the other budgets are met by what stays. Default: all of them.",
        HOW,
        "SHARE",
    )
    epochs: int | None = _option(
        None,
        "Dense training first. Default: 0 for trained weights, 1 for --new-head, else by the data.",
    )
    prune_epochs: int | None = _option(None, "Training while structures decay; 0: cut without.")
    finetune_epochs: int | None = _option(None, "Training of the compact model.")
    batch_size: int | None = _option(None, "Images per step; your own loaders have theirs.")
    optimizer: str = _option(
        "sgd",
        "sgd, adamw, or pkg.mod:function, called with (parameters, lr=LR), such as "
        "torch.optim:RMSprop?momentum=0.9.",
        HOW,
        "NAME",
    )
    lr: float | None = _option(
        None,
        "Peak learning rate; half of it from pruning on, unless the model was trained before: give "
        "the rate of that. Default: 0.1 with sgd, else 0.001; a tenth for a trained model.",
    )
    weight_decay: float = _option(5e-4, "Of sgd and adamw.")
    decay_steps: int | None = _option(
        None, "Steps in which a structure decays. Default: what suits the number of steps."
    )
    rounds: int | None = _option(None, "Instalments in which the budget is reached. Default: 1.")
    host: str = _option(
        "default", f"The pruning method that selects: {', '.join(HOSTS)}.", HOW, "NAME"
    )
    variant: str | None = _option(
        None,
        "alone: the host as published, ours cuts at once; sp: what it picks decays smoothly; "
        "sp_sr: and is released if training resists. Default: alone with --calibrate, else sp_sr.",
        HOW,
        "NAME",
    )
    calibrate: int | None = _option(
        None,
        "Batches of training data, without their labels, that the layers are watched on before "
        "pruning, at most 64: what stays then takes over what leaves. 0: none. Default: 16 for "
        "trained weights, else 0.",
    )
    importance: str | None = _option(
        None,
        "What ranks structures: sensitivity, variance, magnitude, magnitude_l1, taylor, bn_scale, "
        "random, or pkg.mod:function, called with (structures, parameters). Default: sensitivity "
        "with --calibrate, else magnitude.",
        HOW,
        "NAME",
    )
    scope: str = _option(
        "width",
        "What competes: width (wide layers lose more), local (every layer loses the same share), "
        "isomorphic (layers of one kind) or global (the whole model).",
        HOW,
        "NAME",
    )
    round_to: str | None = _option(
        None,
        "Every pruned width becomes a multiple of it; auto: what --target is fast at, the default "
        "where that is named; none: any width, the default elsewhere, but for digits as they are, "
        "32.",
        HOW,
        "NUMBER",
    )
    target: str | None = _option(
        None,
        "Where the model will run: cpu, cuda, onnxruntime or compiled. Its widths become fast "
        "there, and --latency-budget is measured in onnxruntime or compiled, if that is it. "
        "Default: as it is trained.",
        HOW,
        "NAME",
    )
    residual_width: bool | None = _option(
        None,
        "Prune the width of a transformer's residual stream like others, or never. Default: only "
        "if the budget cannot be met without.",
    )
    floor: float | None = _option(
        None, "Share of every width that stays in any case. Default: 10%.", HOW, "SHARE"
    )
    ignored_layers: str | None = _option(
        None, "Names of layers to leave alone, by commas, such as 'stem.*,head'.", HOW, "NAMES"
    )
    seed: int = _option(0, "What everything random follows from.")
    threads: int | None = _option(
        None, "Threads of torch. Default: 1 for digits, else torch's own choice.", WHERE
    )
    device: str | None = _option(
        None, "cpu or cuda. Default: cuda where there is one.", WHERE, "NAME"
    )
    bf16: bool | None = _option(
        None, "Forward passes in bfloat16; by default where the processor is made for it.", WHERE
    )

    def __post_init__(self) -> None:
        for name in ("host", "variant", "teacher"):
            word = getattr(self, name)
            object.__setattr__(self, name, SAME_WORDS.get(word or "", word))

    @property
    def trained(self) -> bool:
        """Whether the model is known to come with trained weights."""
        spec = self.model or ""
        return self.weights is not None or "weights=" in spec or "pretrained=true" in spec.lower()

    @property
    def folder(self) -> Path | None:
        """The folder of images that ``data`` names, if it names one."""
        named = Path(self.data or "").expanduser()
        return named if self.data and (named.is_dir() or ":" not in self.data) else None

    @property
    def budgets(self) -> dict[str, float]:
        """Bounds on what remains, by their names in :class:`~decayprune.Budget`."""
        found = {
            "macs": self.budget,
            "params": self.params_budget,
            "latency": self.latency_budget,
            "depth": self.depth,
        }
        return {name: share for name, share in found.items() if share is not None}

    def resolved(self) -> Settings:
        """The same with every None that has a default filled in, and checked.

        Raises:
            ValueError: A value makes no sense.
        """
        checks.check_data(self, tuple(_BY_DATASET))
        defaults = _BY_DATASET.get(self.dataset, _OWN_LOADERS)
        if self.data:
            defaults = _OWN_IMAGES if self.folder else _OWN_LOADERS
        asked = self.model or self.budgets or self.target or self.host != "default"
        usual = defaults._asdict() | {
            "round_to": None if asked else defaults.round_to,
            "threads": defaults.threads or torch.get_num_threads(),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }
        usual |= {"epochs": int(self.new_head)} if self.trained else {}
        usual |= {"calibrate": _CALIBRATION} if self.trained and self.host == "default" else {}
        # Decays on top of a selection on data have cost accuracy: docs/results.md.
        calibrated = usual.get("calibrate") if self.calibrate is None else self.calibrate
        at_once = calibrated and self.decay_steps is None
        usual |= {"variant": "alone" if at_once else "sp_sr"}
        usual |= {"budget": 0.5} if not self.budgets else {}
        filled = {name: value for name, value in usual.items() if getattr(self, name) is None}
        device = str(filled.get("device", self.device))
        checks.check_device(device)
        if filled.get("bf16"):
            filled["bf16"] = _has_bf16_units(device)
        settings = replace(self, **filled)
        if settings.lr is None:
            settings = replace(settings, lr=settings.peak_lr)
        checks.check(settings, HOSTS, VARIANTS)
        return settings

    @property
    def peak_lr(self) -> float:
        """The highest learning rate: as asked for, or the usual one."""
        if self.lr is not None:
            return self.lr
        peak = 0.1 if self.optimizer == "sgd" else 1e-3
        return peak / 10 if self.trained or self.epochs == 0 else peak

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Settings:
        """Settings as they were kept; what an older version did not know has its default.

        Raises:
            ValueError: A field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        odd = set(found) ^ names
        for later in _LATER:
            if found.keys().isdisjoint(later):
                odd -= later
        if odd:
            raise ValueError(
                f"The settings of the run should hold exactly the fields of this version of "
                f"decayprune; these differ: {', '.join(sorted(odd))}. Resume with the version "
                "that began the run."
            )
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """The settings as flat plain scalars."""
        return asdict(self)

    def command(self) -> str:
        """The line to type for the same run, whatever defaults and the machine decided."""
        words = ["decayprune", "prune"]
        for choice in fields(self):
            value, option = getattr(self, choice.name), checks.named(choice.name)
            if value is None or value == choice.default:
                continue
            if isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-", 1))
            else:
                words += [option, str(value)]
        return shlex.join(words)

    def schedule(self, epoch_steps: int) -> Schedule:
        """When structures are selected, and how long they decay: the same for every host.

        The variant *alone* selects at the same steps as the others, and cuts at once.

        Args:
            epoch_steps: Optimizer steps in one epoch.

        Raises:
            ValueError: A decay does not fit into the steps there are.
        """
        steps = epoch_steps * (self.prune_epochs or 1)
        usual = Schedule.for_run(steps + epoch_steps * (self.finetune_epochs or 0))
        decay = min(usual.decay_steps, max(1, steps // 2))
        if self.decay_steps is not None:
            decay = self.decay_steps
        if decay >= max(2, steps):
            raise ValueError(
                f"--decay-steps must be below the {steps} steps of pruning ({self.prune_epochs} "
                f"epochs of {epoch_steps}); found {decay}. Lower it or raise --prune-epochs."
            )
        rounds = self.rounds or 1
        at_once = self.host == "default" and rounds == 1
        stop = min(decay, steps - decay) if at_once else steps - decay
        smooth = self.variant != "alone"
        return Schedule(stop=stop, rounds=rounds, decay_steps=decay if smooth else 1)


_LATER = (
    frozenset(
        [
            *("weights", "image_size", "loss", "metric", "teacher", "latency_budget", "optimizer"),
            *("scope", "round_to", "floor", "ignored_layers"),
        ]
    ),
    frozenset(["calibrate", "target", "residual_width"]),
    frozenset(["depth"]),
    frozenset(["new_head"]),
)
"""Fields that the folder of an older run does not have, by the release that brought them."""

_CALIBRATION = 16
"""Batches; moments of a few hundred samples are enough."""


def _has_bf16_units(device: str) -> bool:
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())
