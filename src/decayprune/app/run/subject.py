"""Which model on which data: what the settings name, built and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import decayprune as dp
from decayprune.app.run import data as datasets
from decayprune.app.run import models, own
from decayprune.app.run.batches import seed_all, to_device
from decayprune.app.run.blame import blamed
from decayprune.app.run.images import load_folder
from decayprune.app.run.settings import Settings
from decayprune.app.run.weights import load_weights


def read_data(settings: Settings) -> datasets.Data:
    """The data set, the folder of images, or the user's loaders.

    Args:
        settings: Resolved.
    """
    size = settings.batch_size or 1
    if settings.folder is not None:
        return load_folder(settings.folder, size, settings.seed, settings.image_size or 224)
    if settings.data:
        return own.data(settings.data, settings.seed)
    folder = Path(settings.data_dir).expanduser()
    return datasets.load(settings.dataset, folder, size, settings.seed)


def fresh_model(settings: Settings, data: datasets.Data) -> nn.Module:
    """The dense model as it is before the first step: the same at every call.

    Args:
        settings: Resolved.
        data: Says how many channels and classes a named model needs.

    Raises:
        ValueError: The name is unknown, or is one of ours beside loaders of the user.
    """
    seed_all(settings.seed)
    model = _built(settings, data)
    if settings.weights is not None:
        file = Path(settings.weights).expanduser()
        load_weights(model, file, new_head=settings.new_head)
    return model.to(torch.device(settings.device or "cpu"))


def before_and_after(
    settings: Settings, data: datasets.Data, folder: Path
) -> tuple[nn.Module, nn.Module]:
    """The dense model of a finished run, and the compact one that its folder holds.

    Args:
        settings: Of the run.
        data: As :func:`read_data` gives it.
        folder: What the run wrote.
    """
    dense, compact = (fresh_model(settings, data) for _ in range(2))
    return dense, dp.load(folder, compact)


def _built(settings: Settings, data: datasets.Data) -> nn.Module:
    name = settings.model or ""
    if ":" in name:
        return named(name, data.num_classes)
    if settings.data and settings.folder is None:
        raise ValueError(
            f"--data needs a model that fits it: --model pkg.mod:factory; found {name!r}."
        )
    return models.build(name, data.in_channels, data.num_classes, data.image_size)


def named(spec: str, classes: int = 0) -> nn.Module:
    """A model of torchvision, of timm, or of the user.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME`` or ``pkg.mod:factory``, arguments behind a
            question mark.
        classes: Outputs of a model of a library, unless its arguments say so; 0: its own number.

    Raises:
        ValueError: There is no such model, or it could not be built.
    """
    family, _, rest = spec.partition(":")
    if family not in _FAMILIES:
        return own.model(spec)
    name, _, words = rest.partition("?")
    options = own.arguments(words, "--model")
    return _FAMILIES[family](name, options, classes, spec)


def _torchvision(name: str, options: dict[str, Any], classes: int, spec: str) -> nn.Module:
    from torchvision import models as zoo

    if name not in zoo.list_models():
        raise _unknown(spec, name, zoo.list_models())
    # Pretrained weights come with the number of classes they were trained for.
    if classes and not options.keys() & {"weights", "num_classes"}:
        options["num_classes"] = classes
    with blamed("--model", spec):
        model: nn.Module = zoo.get_model(name, **options)
    return model


def _timm(name: str, options: dict[str, Any], classes: int, spec: str) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(f"--model {spec} needs timm: pip install timm") from error
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown(spec, name, timm.list_models())
    if classes:
        options.setdefault("num_classes", classes)
    with blamed("--model", spec):
        model: nn.Module = timm.create_model(name, **options)
    return model


_FAMILIES: dict[str, Callable[[str, dict[str, Any], int, str], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}


def _unknown(spec: str, name: str, known: list[str]) -> ValueError:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 4, 0.4)
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    family = spec.partition(":")[0]
    return ValueError(f"--model {spec}: {family} knows no model {name!r}.{meant}")


def teacher(settings: Settings, data: datasets.Data, dense: nn.Module) -> nn.Module | None:
    """Whom to imitate, if anybody.

    Args:
        settings: Resolved.
        data: Says how many classes a named teacher needs.
        dense: A copy of the model before pruning, which is the teacher if the settings say so.
    """
    if settings.teacher is None:
        return None
    if settings.teacher == "dense":
        found = dense
    elif ":" in settings.teacher:
        found = named(settings.teacher, data.num_classes)
    else:
        raise ValueError(
            "--teacher expects dense, torchvision:NAME, timm:NAME or pkg.mod:factory; found "
            f"{settings.teacher!r}."
        )
    return found.to(torch.device(settings.device or "cpu"))


def optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """What trains the model.

    Args:
        settings: Resolved.
        model: Whose parameters it gets.

    Raises:
        ValueError: The user's function raised something.
        TypeError: It returns no optimizer.
    """
    name, parameters, lr = settings.optimizer, list(model.parameters()), settings.peak_lr
    if name == "sgd":
        decay = settings.weight_decay
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=decay)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=settings.weight_decay)
    found = own.function(name, "--optimizer", "called with (parameters, lr=LR), sgd or adamw")
    with blamed("--optimizer", name):
        made = found(parameters, lr=lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"--optimizer {name} should return a torch.optim.Optimizer; it returned "
            f"{type(made).__name__}."
        )
    return made


def example(settings: Settings, data: datasets.Data, size: int) -> Any:
    """The first test inputs, at most ``size`` of them, as a model takes them.

    Args:
        settings: Resolved.
        data: Whose test split is read.
        size: Examples at most.
    """
    inputs = next(iter(data.test.epoch(0)))[0]
    if isinstance(inputs, dict):
        inputs = {key: value[:size] for key, value in inputs.items()}
    elif isinstance(inputs, (tuple, list)):
        inputs = tuple(value[:size] for value in inputs)
    else:
        inputs = inputs[:size]
    return to_device(inputs, torch.device(settings.device or "cpu"))
