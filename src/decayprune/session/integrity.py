"""Whose a model is, and whether it is still the one that the pruner was built for.

Two pruners on one model would shrink it twice; a model that is edited between two steps has other
parameters than those that are decaying. Both are found where they happen, not at the cut.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from torch import nn

from decayprune.structures import wrappers

_owners: weakref.WeakKeyDictionary[nn.Module, weakref.ref[object]] = weakref.WeakKeyDictionary()
"""Who prunes which model; a forgotten pruner frees its model."""


def check_free(model: nn.Module) -> None:
    """Raise unless this is a bare model that no living pruner works on.

    Raises:
        TypeError: It is no module.
        ValueError: It is wrapped (data parallelism, compilation).
        RuntimeError: A pruner works on it.
    """
    if not isinstance(model, nn.Module):
        is_class = isinstance(model, type)
        found = f"the class {model.__name__}: make one" if is_class else type(model).__name__
        raise TypeError(f"model must be a torch.nn.Module, found {found}.")
    owner = _owners.get(model)
    if owner is not None and owner() is not None:
        raise RuntimeError(
            "Another pruner already works on this model. Let it finish with compact(), or call "
            "its close() first."
        )
    wrappers.check_bare(model)


def claim(model: nn.Module, owner: object) -> None:
    """Note who prunes a model, until it is given up or the owner is forgotten."""
    _owners[model] = weakref.ref(owner)


def give_up(model: nn.Module, owner: object) -> None:
    """Let another pruner have the model."""
    held = _owners.get(model)
    if held is not None and held() is owner:
        del _owners[model]


class Anatomy:
    """The objects that a model is made of, to notice when it is edited between two steps.

    Args:
        model: The model.
        parameters: Those of its parameters that matter, by name.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        modules = dict(model.named_modules())
        self._parts: list[tuple[dict[str, nn.Module | None], str, nn.Module]] = []
        self._parameters = []
        seen = {""}
        for name, parameter in parameters.items():
            path = name.split(".")
            for depth in range(1, len(path)):
                part = ".".join(path[:depth])
                if part not in seen:
                    seen.add(part)
                    parent = modules[".".join(path[: depth - 1])]
                    self._parts.append((parent._modules, path[depth - 1], modules[part]))
            home = modules[".".join(path[:-1])]
            self._parameters.append((name, home._parameters, path[-1], parameter, parameter.shape))

    def check(self) -> None:
        """Raise if a module or a parameter is another one, or has another shape.

        Raises:
            RuntimeError: The model was changed.
        """
        for held, key, module in self._parts:
            if held.get(key) is not module:
                raise RuntimeError(_edited(f"{key!r} is another module"))
        for name, owned, key, parameter, shape in self._parameters:
            if owned.get(key) is not parameter or parameter.shape != shape:
                raise RuntimeError(_edited(f"{name} is another parameter, or not {tuple(shape)}"))


def _edited(what: str) -> str:
    return (
        f"The model was changed between two steps: {what}, unlike when the pruner was built. "
        "Change the model before building the pruner, or build a new one."
    )
