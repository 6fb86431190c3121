"""The user's own model and loaders, named as ``pkg.mod:function`` on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from decayprune.app.run.batches import LoaderBatches
from decayprune.app.run.data import Data


def _call(spec: str, option: str, returns: str) -> object:
    """Import ``pkg.mod:function`` (the working directory counts) and call it."""
    module_name, _, name = spec.partition(":")
    wanted = (
        f"{option} expects pkg.mod:function, a function without arguments that returns {returns}"
    )
    if not module_name or not name:
        raise ValueError(f"{wanted}; found {spec!r}.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's module imports may be the one that is missing.
        where = "" if error.name == module_name.split(".")[0] else f" (imported by {module_name})"
        raise ValueError(
            f"{wanted}; found {spec!r}, but there is no module {error.name!r}{where}. It is looked "
            f"for in {here} and among the installed packages."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        state = "nothing of that name" if function is None else "no function of that name"
        raise ValueError(f"{wanted}; found {state} in {module.__file__}: {name!r}.")
    return function()


def model(spec: str) -> nn.Module:
    """Call the user's model factory.

    Args:
        spec: ``pkg.mod:factory``; the factory takes no argument.

    Raises:
        ValueError: There is no such function.
        TypeError: It does not return a module.
    """
    found = _call(spec, "--model", "an nn.Module")
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"--model {spec} should return an nn.Module; it returned {type(found).__name__}."
        )
    return found


def data(spec: str, seed: int) -> Data:
    """Call the user's function for the loaders.

    Args:
        spec: ``pkg.mod:loaders``; the function takes no argument and returns
            (train_loader, test_loader), both of (inputs, targets).
        seed: What the order of a shuffling loader follows from.

    Raises:
        ValueError: There is no such function, or a loader is empty.
        TypeError: It does not return two loaders.
    """
    found = _call(spec, "--data", "(train_loader, test_loader)")
    if not (isinstance(found, (tuple, list)) and len(found) == 2):
        raise TypeError(
            f"--data {spec} should return a pair (train_loader, test_loader); it returned "
            f"{type(found).__name__}."
        )
    for name, loader in zip(("train", "test"), found, strict=True):
        if not isinstance(loader, Iterable):
            raise TypeError(
                f"--data {spec} should return two loaders of (inputs, targets); the {name} loader "
                f"is {type(loader).__name__}, which cannot be iterated over."
            )
        if len(LoaderBatches(loader)) == 0:
            raise ValueError(f"--data {spec}: the {name} loader holds no batch.")
    return Data(LoaderBatches(found[0], seed), None, LoaderBatches(found[1], seed))
