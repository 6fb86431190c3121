"""What is asked of a user's arguments, in words: expected, found, what to do."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from decayprune.method.decay import CURVES, Curve
from decayprune.selection.importance import IMPORTANCES, Importance, random
from decayprune.structures import wrappers
from decayprune.structures.structure_map import StructureMap

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


def check_kind(name: str, value: object, kind: type, example: str) -> None:
    """Raise unless an argument is of its kind.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {kind.__name__}, such as {example}; found {value!r}.")


def as_optimizers(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
) -> list[torch.optim.Optimizer]:
    """One optimizer or several, as a list; raise for what cannot work."""
    given = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
    for one in given:
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(
                "optimizer must be a torch.optim.Optimizer or a list of them, found "
                f"{type(one).__name__}."
            )
        if isinstance(one, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS takes many inner steps in one step() and keeps a history of flattened "
                "gradients that cannot be cut along; use SGD, Adam or AdamW."
            )
        # By name: torch has it since 2.5, and transformers has one of its own.
        if any(kind.__name__ == "Adafactor" for kind in type(one).__mro__):
            raise ValueError(
                "Adafactor keeps sums over rows and columns of its gradients, which cannot be cut "
                "along when structures are removed; use SGD, Adam or AdamW."
            )
    return given


def check_prunable(structures: StructureMap) -> None:
    """Raise if there is no structure at all, and say why."""
    if structures.num_structures:
        return
    reasons = "; ".join(
        f"{r.layer or 'the model itself'}: {r.reason}" for r in structures.refusals[:5]
    )
    raise ValueError(
        "Nothing in this model can be pruned. "
        + (f"What is left alone, and why: {reasons}. " if reasons else "No layer was found. ")
        + "See dp.inspect(model, example_inputs) for the whole list."
    )


def check_held(
    parameters: Mapping[str, nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Raise if an optimizer step would not move what is to be pruned."""
    held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    missing = [name for name, parameter in parameters.items() if id(parameter) not in held]
    if missing:
        raise ValueError(
            f"The optimizer does not hold {len(missing)} of the {len(parameters)} parameters to "
            f"prune (the first: {', '.join(missing[:3])}). Was it built for another copy of the "
            "model? Build it from this model's parameters(), or freeze those parameters."
        )


def as_curve(decay: str | Curve) -> Curve:
    """The decay schedule behind a name, or the user's own; raise unless it falls from 1 to 0."""
    curve = CURVES.get(decay) if isinstance(decay, str) else decay
    if curve is None or not callable(curve):
        raise ValueError(f"decay is 'linear', 'cosine' or a function of progress, found {decay!r}.")
    ends = curve(torch.tensor([0.0, 1.0])).tolist()
    if ends != [1.0, 0.0]:
        raise ValueError(f"decay must fall from 1 at progress 0 to 0 at progress 1, found {ends}.")
    return curve


def as_importance(importance: str | Importance, seed: int) -> Importance:
    """The function behind a name, or the user's own.

    Raises:
        ValueError: The name is not known.
    """
    if callable(importance):
        return importance
    known = IMPORTANCES | {"random": random(seed)}
    if importance not in known:
        raise ValueError(
            f"importance is one of {', '.join(map(repr, known))}, or a function "
            f"(structures, parameters) -> scores; found {importance!r}."
        )
    return known[importance]


def shared_seed(importance: str | Importance) -> int:
    """A seed for random importance, the same in every process of a data-parallel run."""
    seed = torch.initial_seed() % 2**63
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    if importance != "random" or not parallel:
        return seed
    shared = [seed]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def check_slices(slices: str) -> None:
    """Raise unless these are slices that can shrink."""
    if slices not in ("carriers", "all"):
        raise ValueError(f"slices is 'carriers' or 'all', found {slices!r}.")


def check_gradients(parameters: Iterable[Tensor], caller: str, order: str) -> None:
    """Raise if no parameter has a gradient."""
    if all(parameter.grad is None for parameter in parameters):
        raise RuntimeError(
            f"{caller} needs the gradients of this step, and every .grad is None: was zero_grad() "
            f"called first? The order is: {order}"
        )


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
