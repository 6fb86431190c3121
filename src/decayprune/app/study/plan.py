"""What the study wants of each host: a trial as a plan.

Every host gets the same budget of MACs and the same ``N``, Gate Decorator no more than a tick;
``alone`` is ``N = 1`` without rectifying, so that a pair differs in what is being tested and in
nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from decayprune.app.run import methods
from decayprune.app.run.batches import Batch
from decayprune.app.run.methods import Plan, Pruning
from decayprune.app.study.controls import RandomRelease
from decayprune.app.study.dense import optimizer_of
from decayprune.app.study.trial import Trial
from decayprune.cost import Budget
from decayprune.hosts import TickTock
from decayprune.method.rectify import Rectify
from decayprune.selection.schedule import Schedule

_ROUNDS = 10


def build(
    trial: Trial,
    model: nn.Module,
    example: Tensor,
    steps: int,
    batches: Iterable[Batch] = (),
) -> Pruning:
    """The host of a trial on a model.

    Args:
        trial: Says which, in which variant; how many batches to calibrate on, in its options.
        model: Dense.
        example: Inputs for one forward pass.
        steps: Optimizer steps to come.
        batches: To calibrate on.

    Raises:
        ValueError: The host has no such control.
    """
    optimizer = optimizer_of(trial.training, model)
    wanted = plan(trial, model, steps)
    if "calibrate" in wanted.options:
        read = itertools.islice(batches, wanted.options["calibrate"])  # labels and all
        wanted = replace(wanted, options={**wanted.options, "calibrate": read})
    return methods.build(wanted, model, example, optimizer)


def plan(trial: Trial, model: nn.Module, steps: int) -> Plan:
    """What the host of a trial is to do.

    Args:
        trial: Says which, in which variant.
        model: Dense; looked at only.
        steps: Optimizer steps to come.

    Raises:
        ValueError: The host has no such control.
    """
    if trial.variant == "random_selection" and trial.host != "default":
        raise ValueError("random_selection is a control of the default pruner.")
    smooth = trial.variant not in ("alone", "rounds")
    start = int(trial.start * steps)
    decay_steps = (trial.decay_steps or max(1, steps // 10)) if smooth else 1
    rectify = Rectify() if smooth and trial.variant != "sp" else None
    if trial.variant == "random_release":
        rectify = RandomRelease(seed=trial.seed)
    found = Plan(
        host=trial.host,
        budget=Budget(macs=trial.budget),
        schedule=Schedule(start=start, stop=start, decay_steps=decay_steps),
        rectify=rectify,
        options=trial.options,
    )
    of_host = {
        "default": lambda: _default(found, trial, steps),
        "dhspg": lambda: _dhspg(found, steps),
        "hesso": lambda: _hesso(found, trial, steps),
        "depgraph": lambda: _depgraph(found, trial, model, steps),
        "depgraph-sl": lambda: _depgraph(found, trial, model, steps),
        "gate-decorator": lambda: _gate_decorator(found, trial, steps),
    }
    return of_host[trial.host]()


def _default(found: Plan, trial: Trial, steps: int) -> Plan:
    usual = Schedule.for_run(steps, start=found.schedule.start)
    schedule = replace(found.schedule, stop=usual.stop)
    if trial.variant == "rounds":
        schedule = replace(schedule, rounds=_ROUNDS, stop=(schedule.start + steps) // 2)
    random = {"importance": "random"} if trial.variant == "random_selection" else {}
    # Equal on every machine, and any width, so that all hosts keep the very same budget and are
    # free to take the same structures.
    options = {"round_to": None, "residual_width": True, **found.options, **random}
    return replace(found, schedule=schedule, options=options)


def _dhspg(found: Plan, steps: int) -> Plan:
    stop = max(found.schedule.start, 1, steps // 4)
    return replace(found, schedule=replace(found.schedule, stop=stop))


def _hesso(found: Plan, trial: Trial, steps: int) -> Plan:
    """HESSO decays by itself: alone it is as published, smooth variants hold its norms."""
    stop = found.schedule.start + max(_ROUNDS, steps // 4)
    published = {"decay_steps": None} if trial.variant == "alone" else {}
    schedule = replace(found.schedule, stop=stop, rounds=_ROUNDS)
    return replace(found, schedule=schedule, options={**published, **found.options})


def _depgraph(found: Plan, trial: Trial, model: nn.Module, steps: int) -> Plan:
    """DepGraph without training between its iterative steps; sparse learning comes before them."""
    options = dict(found.options)
    start = found.schedule.start
    if trial.host == "depgraph-sl":
        start = max(start, int(options.pop("sparse", 0.0) * steps))
        options.setdefault("reg", 5e-4)
    rounds, stop = 1, start + found.schedule.decay_steps
    if trial.variant == "rounds":
        rounds, stop = _ROUNDS, start + _ROUNDS * max(1, steps // (2 * _ROUNDS))
    options["ignored_layers"] = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    schedule = replace(found.schedule, start=start, stop=stop, rounds=rounds)
    return replace(found, schedule=schedule, options=options)


def _gate_decorator(found: Plan, trial: Trial, steps: int) -> Plan:
    options: dict[str, Any] = dict(found.options)
    ticks = options.pop("ticks", None)
    schedule = TickTock.for_run(steps) if ticks is None else TickTock(**ticks)
    options["schedule"] = schedule
    if trial.decay_steps is not None:
        return replace(found, options=options)
    # A decay fits into a tick.
    decay_steps = min(found.schedule.decay_steps, schedule.tick_steps)
    return replace(
        found, schedule=replace(found.schedule, decay_steps=decay_steps), options=options
    )
