"""What the command wants of each host: its settings as a plan.

All hosts get the same budget, the same steps to select in and the same ``N`` (Gate Decorator no
more than a tick, unless told). A variant says how they use them: *alone* is the method as
published, *sp* adds smooth pruning, and *sp_sr* lets it change its mind as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor, nn

from decayprune.app.run import own
from decayprune.app.run.blame import blamed
from decayprune.app.run.methods import Plan
from decayprune.app.run.settings import Settings
from decayprune.cost import Budget
from decayprune.hosts import TickTock
from decayprune.hosts.otov2.penalty import PENALTIES
from decayprune.inspection import inspect
from decayprune.method.rectify import Rectify
from decayprune.selection.schedule import Schedule

_PERIODS = 10  # of HESSO, as published
_REG = 5e-4  # of sparse learning, as published


def plan(
    settings: Settings,
    schedule: Schedule,
    steps: int,
    model: nn.Module,
    example: Any,
    batches: Iterable[Any] = (),
) -> Plan:
    """What the host that the settings name is to do.

    Args:
        settings: Resolved.
        schedule: The one of the settings; steps are counted from now.
        steps: Optimizer steps to come, fine-tuning included.
        model: Dense; looked at only.
        example: Inputs for one forward pass.
        batches: Inputs that our own host calibrates on, if the settings want it to.

    Raises:
        ValueError: The steps are too few for the rounds.
    """
    found = Plan(
        host=settings.host,
        budget=Budget(**settings.budgets),
        schedule=schedule,
        rectify=Rectify() if settings.variant == "sp_sr" else None,
    )
    ignored = [name.strip() for name in (settings.ignored_layers or "").split(",") if name.strip()]
    of_host: dict[str, Callable[[], Plan]] = {
        "default": lambda: replace(found, options=_default(settings, batches)),
        "dhspg": lambda: _dhspg(found, settings.peak_lr),
        "hesso": lambda: _hesso(found, settings),
        "depgraph": lambda: _depgraph(found, _refused(model, example, ignored)),
        "depgraph-sl": lambda: _sparse(_depgraph(found, _refused(model, example, ignored))),
        "gate-decorator": lambda: _gate_decorator(found, settings, steps),
    }
    wanted = of_host[settings.host]()
    if not ignored or "ignored_layers" in wanted.options:
        return wanted
    return replace(wanted, options={**wanted.options, "ignored_layers": ignored})


def _default(settings: Settings, batches: Iterable[Any]) -> dict[str, Any]:
    """What the command hands to our own host."""
    importance: Any = settings.importance
    if importance and ":" in importance:
        importance = _importance(importance)
    floor = {} if settings.floor is None else {"floor": settings.floor}
    return {
        "importance": importance,
        "calibrate": batches if settings.calibrate else None,
        "residual_width": settings.residual_width,
        "scope": settings.scope,
        "target": settings.target,
        "round_to": _multiple(settings.round_to, settings.target),
        **floor,
    }


def _importance(spec: str) -> Callable[[Any, Any], Tensor]:
    """The user's function, whose errors name the option."""
    found: Any = own.function(spec, "--importance", "a function of (structures, parameters)")

    @wraps(found.func)  # it may say that it reads gradients
    def scores(structures: Any, parameters: Any) -> Tensor:
        with blamed("--importance", spec):
            values: Tensor = found(structures, parameters)
            return values

    return scores


def _multiple(words: str | None, target: str | None) -> int | str | None:
    """What widths are to be multiples of; of a target that is named its own, unless told."""
    if words is None:
        return None
    if words == "none":
        return 1 if target else None
    return words if words == "auto" else int(words)


def _dhspg(found: Plan, lr: float) -> Plan:
    """A penalty as strong as takes a length of about 10 in the steps that there are.

    The published one is made for a hundred epochs. The rate of pruning is half the peak.
    """
    stop = max(1, found.schedule.stop)
    options = {
        "tolerance_group_sparsity": 0.0,  # more than the budget needs would miss it from below
        "lmbda": max(PENALTIES["sgd"].lmbda, 20 / (lr * stop)),
    }
    return replace(found, schedule=replace(found.schedule, stop=stop), options=options)


def _hesso(found: Plan, settings: Settings) -> Plan:
    """HESSO decays by itself; the smooth variants hold its norms to the schedule."""
    stop = max(1, found.schedule.stop)
    rounds = min(settings.rounds or _PERIODS, stop)
    published = {"decay_steps": None} if settings.variant == "alone" else {}
    schedule = replace(found.schedule, stop=stop, rounds=rounds)
    return replace(found, schedule=schedule, options=published)


def _refused(model: nn.Module, example: Any, ignored: list[str]) -> list[nn.Module]:
    """Layers whose widths cannot or shall not be cut; Torch-Pruning has to be told."""
    found = inspect(model, example, ignored).structures.refusals
    refused = {refusal.layer for refusal in found}
    return [module for name, module in model.named_modules() if name in refused]


def _depgraph(found: Plan, ignored: list[nn.Module]) -> Plan:
    rounds = found.schedule.rounds
    interval = found.schedule.stop // rounds
    if rounds > 1 and interval < found.round_steps:
        raise ValueError(
            f"--rounds {rounds} leaves {interval} steps for each, and a round of --host "
            f"{found.host} needs {found.round_steps}. Lower --rounds or --decay-steps."
        )
    return replace(found, options={"ignored_layers": ignored})


def _sparse(found: Plan) -> Plan:
    """Sparse learning takes up to half of the time, and leaves the rounds theirs."""
    schedule = found.schedule
    start = max(0, min(schedule.stop // 2, schedule.stop - found.round_steps * schedule.rounds))
    options = {**found.options, "reg": _REG}
    return replace(found, schedule=replace(schedule, start=start), options=options)


def _gate_decorator(found: Plan, settings: Settings, steps: int) -> Plan:
    """Gate Decorator with the ticks of a short run, over when the others have selected."""
    ticks = TickTock.for_run(min(steps, 8 * found.schedule.stop))
    decay_steps = found.schedule.decay_steps
    if settings.decay_steps is None:
        decay_steps = min(decay_steps, ticks.tick_steps)
    options = {"schedule": ticks, "tock_lr": None}  # rates as for the other hosts
    schedule = replace(found.schedule, decay_steps=decay_steps)
    return replace(found, schedule=schedule, options=options)
