"""Code of the user: ``pkg.mod:function?argument=value``, imported, called and checked."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from torch import nn

from decayprune.app.run.batches import LoaderBatches
from decayprune.app.run.blame import blamed
from decayprune.app.run.data import Data


def arguments(text: str, option: str) -> dict[str, Any]:
    """Read ``argument=value&argument=value``: Python literals, or else texts.

    Args:
        text: What follows the question mark.
        option: For the message.

    Raises:
        ValueError: A part is no ``argument=value``.

    >>> arguments("width=0.5&pretrained=true&pool=avg", "--model")
    {'width': 0.5, 'pretrained': True, 'pool': 'avg'}
    """
    found = {}
    for part in filter(None, text.split("&")):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(
                f"{option} expects arguments as name?argument=value&argument=value; found {part!r}."
            )
        found[name] = _literal(unquote(value))
    return found


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def function(spec: str, option: str, wanted: str) -> Callable[..., Any]:
    """Import what ``pkg.mod:function`` names (the working directory counts), arguments bound.

    Args:
        spec: With ``?argument=value`` behind it or not.
        option: Where it was given.
        wanted: What the function is to be, for messages.

    Raises:
        ValueError: There is no such function.
    """
    path, _, rest = spec.partition("?")
    module_name, _, name = path.partition(":")
    expected = f"{option} expects pkg.mod:function, {wanted}"
    if not module_name or not name:
        raise ValueError(f"{expected}; found {spec!r}.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with blamed(option, spec):
            module = importlib.import_module(module_name)
    except ValueError as error:
        missing = error.__cause__
        if not isinstance(missing, ModuleNotFoundError):
            raise
        # A module that the user's module imports may be the one that is missing.
        own = missing.name in (module_name, module_name.split(".")[0])
        where = "" if own else f" (imported by {module_name})"
        raise ValueError(
            f"{expected}; found {spec!r}, but there is no module {missing.name!r}{where}. It is "
            f"looked for in {here} and among the installed packages."
        ) from missing
    found = getattr(module, name, None)
    if not callable(found):
        state = "nothing of that name" if found is None else "no function of that name"
        where = getattr(module, "__file__", None) or module_name
        raise ValueError(f"{expected}; found {state} in {where}: {name!r}.")
    return partial(found, **arguments(rest, option))


def call(spec: str, option: str, wanted: str, *values: Any) -> Any:
    """Import and call a function of the user.

    Args:
        spec: ``pkg.mod:function``, with ``?argument=value`` behind it or not.
        option: Where it was given.
        wanted: What it is to be, for messages.
        values: Positional arguments.

    Raises:
        ValueError: There is no such function, its arguments do not fit, or it raised something.
    """
    found = function(spec, option, wanted)
    _check_arguments(found, spec, option, values)
    with blamed(option, spec):
        return found(*values)


def _check_arguments(
    found: Callable[..., Any], spec: str, option: str, values: tuple[Any, ...]
) -> None:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # written in C, without a signature
        return
    try:
        signature.bind(*values)
    except TypeError as error:
        path = spec.partition("?")[0]
        raise ValueError(
            f"{option} {spec}: {path.partition(':')[2]}{signature} is called "
            f"{'with ' + str(len(values)) if values else 'without'} arguments of ours ({error}). "
            f"Give those it needs as {path}?argument=value&argument=value."
        ) from error


def model(spec: str) -> nn.Module:
    """Call the user's model factory.

    Args:
        spec: ``pkg.mod:factory``, with ``?argument=value`` behind it or not.

    Raises:
        ValueError: There is no such function, or it raised something.
        TypeError: It does not return a module.
    """
    found = call(spec, "--model", "a function that returns an nn.Module")
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"--model {spec} should return an nn.Module; it returned {type(found).__name__}."
        )
    return found


def data(spec: str, seed: int) -> Data:
    """Call the user's function for the loaders.

    Args:
        spec: ``pkg.mod:loaders``, with ``?argument=value`` behind it or not; the function returns
            (train_loader, test_loader), both of (inputs, targets).
        seed: What the order of a shuffling loader follows from.

    Raises:
        ValueError: There is no such function, it raised something, or a loader is empty.
        TypeError: It does not return two loaders.
    """
    found = call(spec, "--data", "a function that returns (train_loader, test_loader)")
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
    train, test = (LoaderBatches(loader, seed, spec) for loader in found)
    return Data(train, None, test, judged_on="the test loader")
