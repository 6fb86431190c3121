"""What is asked of a user's arguments, in words: expected, found, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from decayprune.cost import Budget
from decayprune.method.decay import CURVES, Curve
from decayprune.method.rectify import Rectify
from decayprune.selection.importance import IMPORTANCES, Importance, random
from decayprune.selection.schedule import Schedule
from decayprune.structures.ranks import shared
from decayprune.structures.refusals import by_weight
from decayprune.structures.structure_map import StructureMap

FORMS = ("onnxruntime", "compiled")
"""Targets that say how a latency is measured, too."""


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
    """One optimizer or several, as a list, without what trainers wrap around them.

    Raises:
        TypeError: Something is no optimizer.
        ValueError: An optimizer of a kind whose state cannot be cut along.
    """
    given = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
    bare = [_unwrapped(one) for one in given]
    for one in bare:
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
    return bare


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer that really steps: trainers (Accelerate, Lightning) hand out wrappers.

    A wrapper may call itself an optimizer, and yet have neither hooks nor state of its own.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def check_one_device(parameters: Mapping[str, torch.Tensor]) -> None:
    """Raise unless all parameters that are pruned live on one device that holds numbers.

    Raises:
        ValueError: They are on several, or on none (``meta``).
    """
    where: dict[str, str] = {}
    for name, parameter in parameters.items():
        where.setdefault(str(parameter.device), name)
    if any(device.startswith("meta") for device in where):
        raise ValueError(
            "The model has no numbers yet (its parameters are on the meta device): load or "
            "initialise its weights before building the pruner."
        )
    if len(where) > 1:
        found = ", ".join(f"{name} on {device}" for device, name in where.items())
        raise ValueError(
            f"The parameters to prune are split over several devices ({found}). Prune the model on "
            "one device, and split it afterwards."
        )


def check_prunable(structures: StructureMap) -> None:
    """Raise if there is no structure at all, and say why."""
    if structures.num_structures:
        return
    reasons = "; ".join(by_weight(structures.refusals))
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
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    missing = [name for name in trained if id(parameters[name]) not in held]
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
    ends = curve(torch.tensor([0.0, 1.0], device="cpu")).tolist()
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
            f"importance is one of {', '.join(map(repr, known))}, 'sensitivity' or 'variance' "
            "(both with calibrate=), or a function (structures, parameters) -> scores; found "
            f"{importance!r}."
        )
    return known[importance]


def as_number_of_batches(calibrate: int, first: int) -> int:
    """How many batches of the training are kept.

    Args:
        calibrate: As given.
        first: Step of the first round.

    Raises:
        ValueError: Not so many steps go before it.
    """
    if isinstance(calibrate, bool) or calibrate < 1:
        raise ValueError(
            "calibrate is data (your training loader), or a number of batches of the training, "
            f"such as 16; found {calibrate}."
        )
    if first < calibrate:
        raise ValueError(
            f"calibrate={calibrate} keeps batches of the {calibrate} steps before the first round, "
            f"and that is at step {first}. Begin later, Schedule.at_once(start={calibrate}) or "
            "Schedule.for_run(total_steps, start=...), or pass the data itself: calibrate=loader, "
            "your training loader."
        )
    return calibrate


def check_plan(budget: Budget, schedule: Schedule, rectify: Rectify | None) -> None:
    """Raise unless these are what they are called, and go together.

    Raises:
        TypeError: One is of another kind.
        ValueError: The budget bounds what cannot be bounded together.
    """
    check_kind("budget", budget, Budget, "dp.Budget(macs=0.5)")
    if budget.depth is not None and budget.latency is not None:
        raise ValueError(
            "Budget(depth=..., latency=...): the estimate of a latency knows widths only. Bound "
            "macs beside depth, and measure the result with dp.benchmark()."
        )
    check_kind("schedule", schedule, Schedule, "dp.Schedule.for_run(total_steps)")
    if rectify is not None:
        check_kind("rectify", rectify, Rectify, "dp.Rectify(), or None")


def shared_seed(importance: str | Importance) -> int:
    """A seed for random importance, the same in every process of a data-parallel run."""
    seed = torch.initial_seed() % 2**63
    return shared(lambda: seed) if importance == "random" else seed


def as_round_to(
    round_to: object, target: object, *, timed: bool = False
) -> int | Literal["auto"] | None:
    """Multiples that widths are to be; where a target is named, unless told those it is fast at.

    Args:
        round_to: As the pruner takes it.
        target: As the pruner takes it.
        timed: Whether there is a budget of latency, which can be measured in another form.

    Raises:
        ValueError: They make no sense, or the target has no say in anything.
    """
    if round_to is None:
        return None if target is None else "auto"
    if round_to == "auto":
        return "auto"
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise ValueError(
            "round_to is a whole number of channels from 1, 'auto' for what suits the machine, or "
            f"None; found {round_to!r}."
        )
    if target is None or (timed and target in FORMS):
        return round_to
    raise ValueError(
        "target says which widths suit where the model will run, or with 'onnxruntime' or "
        f"'compiled' how a Budget(latency=...) is measured; round_to is {round_to!r} and "
        f"{'the target another' if timed else 'no latency is bounded'}: leave one of them out."
    )


def check_slices(slices: str) -> None:
    """Raise unless these are slices that can shrink."""
    if slices not in ("carriers", "all"):
        raise ValueError(f"slices is 'carriers' or 'all', found {slices!r}.")
