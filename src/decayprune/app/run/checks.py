"""What is asked of the settings of a run, each refusal with the option to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from decayprune.selection.importance import IMPORTANCES
from decayprune.session.arguments import FORMS

if TYPE_CHECKING:
    from decayprune.app.run.settings import Settings

_LOWEST = {
    "epochs": 0,
    "prune_epochs": 0,
    "finetune_epochs": 0,
    "batch_size": 1,
    "seed": 0,
    "threads": 1,
    "decay_steps": 1,
    "rounds": 1,
    "image_size": 8,
    "calibrate": 0,
}
_HOSTS_WITH_ROUNDS = ("default", "hesso", "depgraph", "depgraph-sl")
_OPTIMIZERS_THEMSELVES = ("dhspg", "hesso")
_OF_THE_DEFAULT_HOST = {
    "calibrate": None,
    "importance": None,
    "scope": "width",
    "round_to": None,
    "target": None,
    "residual_width": None,
    "floor": None,
    "latency_budget": None,
    "depth": None,
}
_TARGETS = ("cpu", "cuda", *FORMS)
_ON_DATA = ("sensitivity", "variance")
_IMPORTANCES = (*_ON_DATA, *IMPORTANCES, "random")
_SCOPES = ("width", "local", "isomorphic", "global")


def named(field: str) -> str:
    """The option behind a field."""
    return "--" + field.replace("_", "-")


def check_data(settings: Settings, datasets: Sequence[str]) -> None:
    """Raise unless the data and what goes with them make sense, before defaults are filled in.

    Raises:
        ValueError: They do not.
    """
    folder = settings.folder
    if not settings.data and settings.dataset not in datasets:
        raise ValueError(
            f"--dataset expects one of {', '.join(datasets)}; found {settings.dataset!r}. "
            "For your own data give --data, a folder of class folders or pkg.mod:loaders."
        )
    if folder is not None and not folder.is_dir():
        raise ValueError(
            "--data expects a folder that holds one folder of images per class, or "
            f"pkg.mod:loaders; there is no folder {settings.data}."
        )
    if settings.data and not settings.model:
        raise ValueError("--data needs a model that fits it: give --model as well.")
    if settings.data and folder is None and settings.batch_size is not None:
        raise ValueError("--batch-size has no effect on the loaders of --data: leave it out.")
    if folder is None and settings.image_size is not None:
        raise ValueError("--image-size is for --data FOLDER, a folder of images: leave it out.")
    if settings.weights is not None and not Path(settings.weights).expanduser().exists():
        raise ValueError(f"--weights expects a file or a folder; there is no {settings.weights}.")
    if settings.new_head and settings.weights is None:
        raise ValueError("--new-head says that --weights are of other classes: give them as well.")


def check_device(device: str) -> None:
    """Raise unless torch can compute there.

    Raises:
        ValueError: It cannot.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device expects cpu, cuda or cuda:1 and the like; found {device!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda expects a GPU that this torch can use; found none. Leave --device out "
            "to compute on the processor."
        )


def check(settings: Settings, hosts: Sequence[str], variants: Sequence[str]) -> None:
    """Raise unless every value makes sense, alone and beside the others.

    Raises:
        ValueError: One does not.
    """
    for name, low in _LOWEST.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            raise ValueError(f"{named(name)} must be at least {low}; found {value}.")
    for name, known in (("host", hosts), ("variant", variants), ("scope", _SCOPES)):
        if getattr(settings, name) not in known:
            raise ValueError(
                f"--{name} expects one of {', '.join(known)}; found {getattr(settings, name)!r}."
            )
    _check_widths(settings)
    _check_numbers(settings)
    _check_host(settings)
    if settings.prune_epochs == 0 and not _is_one_shot(settings):
        raise ValueError(
            "--prune-epochs 0 cuts without training, which is for a trained model that is ranked "
            "on data and cut at once: give its --weights, and leave out --host, --variant, "
            "--rounds and --decay-steps. Otherwise give at least 1."
        )
    if settings.optimizer not in ("sgd", "adamw") and ":" not in settings.optimizer:
        raise ValueError(
            "--optimizer expects sgd, adamw or pkg.mod:function, such as torch.optim:RMSprop; "
            f"found {settings.optimizer!r}."
        )


def _is_one_shot(settings: Settings) -> bool:
    alone = settings.host == "default" and settings.variant == "alone"
    return alone and bool(settings.calibrate) and (settings.rounds or 1) == 1


def _check_widths(settings: Settings) -> None:
    multiple = settings.round_to
    if multiple not in (None, "auto", "none") and not (multiple.isdigit() and int(multiple)):
        raise ValueError(
            f"--round-to expects a whole number from 1, auto or none; found {multiple}."
        )
    if settings.target not in (None, *_TARGETS):
        raise ValueError(
            f"--target expects one of {', '.join(_TARGETS)}; found {settings.target!r}."
        )
    timed = settings.latency_budget is not None and settings.target in FORMS
    if settings.target and multiple not in (None, "auto") and not timed:
        raise ValueError(
            f"--target asks for the widths that are fast there, and --round-to {multiple} for "
            "others: leave one of them out. With --latency-budget, which is then measured there, "
            "--target onnxruntime and compiled take both."
        )


def _check_numbers(settings: Settings) -> None:
    importance = settings.importance
    if importance not in (None, *_IMPORTANCES) and ":" not in str(importance):
        raise ValueError(
            f"--importance expects one of {', '.join(_IMPORTANCES)}, or pkg.mod:function, called "
            f"with (structures, parameters); found {importance!r}."
        )
    if importance in _ON_DATA and not settings.calibrate:
        raise ValueError(
            f"--importance {importance} ranks by what happens on some data: give --calibrate, such "
            "as --calibrate 16, as well."
        )
    if not settings.peak_lr > 0:
        raise ValueError(f"--lr must be above 0; found {settings.lr}.")
    if not settings.weight_decay >= 0:
        raise ValueError(f"--weight-decay must be at least 0; found {settings.weight_decay}.")
    if settings.floor is not None and not 0 <= settings.floor < 1:
        raise ValueError(
            "--floor is the share of every width that stays, from 0 to below 1; found "
            f"{settings.floor}."
        )
    for name in ("budget", "params_budget", "latency_budget", "depth"):
        share = getattr(settings, name)
        if share is not None and not 0 < share <= 1:
            raise ValueError(
                f"{named(name)} is the share that remains, such as 50% or 0.5, above 0 and up to "
                f"1; found {share}. To remove 30 %, write {named(name)} 0.7."
            )
    if settings.depth is not None and settings.latency_budget is not None:
        raise ValueError(
            "--latency-budget estimates widths alone and cannot stand beside --depth: bound the "
            "MACs with --budget instead; the report says how much faster the result is."
        )


def _check_host(settings: Settings) -> None:
    host = settings.host
    for name, usual in _OF_THE_DEFAULT_HOST.items():
        if host != "default" and getattr(settings, name) != usual:
            raise ValueError(
                f"{named(name)} has no effect with --host {host}, which decides by itself: leave "
                "one of them out."
            )
    if settings.rounds is not None and host not in _HOSTS_WITH_ROUNDS:
        raise ValueError(
            f"--rounds has no effect with --host {host}, which selects in steps of its own: leave "
            "one of them out."
        )
    if settings.decay_steps is not None and settings.variant == "alone":
        raise ValueError(
            "--decay-steps has no effect with --variant alone, the host as published: leave one "
            "of them out."
        )
    if host in _OPTIMIZERS_THEMSELVES and settings.optimizer not in ("sgd", "adamw"):
        raise ValueError(
            f"--host {host} is an optimizer itself and trains as sgd or adamw; found --optimizer "
            f"{settings.optimizer}."
        )
