"""Builds what prunes in a trial: a host in one of its variants, behind one small surface.

Every host gets the same budget of MACs and the same ``N``, Gate Decorator no more than a tick;
``alone`` is ``N = 1`` without rectifying, so that a pair differs in what is being tested and in
nothing else. Where a host has a penalty of its own on the gradients, it is added after they were
observed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from decayprune.app.study.controls import release_at_random
from decayprune.app.study.dense import optimizer_of
from decayprune.app.study.trial import Trial
from decayprune.cost import Budget
from decayprune.hosts import DHSPG, HESSO, GateDecorator, TickTock, TorchPruningHost
from decayprune.method.lifecycle import Event
from decayprune.method.rectify import Rectify
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.surgery.compact import CompactionReport

_ROUNDS = 10


class Host(Protocol):
    """What all hosts have in common."""

    @property
    def finished(self) -> bool:
        """Whether the budget is met and nothing decays."""

    @property
    def events(self) -> list[Event]:
        """What happened, in order."""

    def observe(self) -> None:
        """Read the gradients before they are changed."""

    def compact(self) -> CompactionReport:
        """Cut what is pruned out of the model."""


class Method:
    """A host in a loop that calls ``observe()`` before clipping and ``step()`` after the step.

    Args:
        host: What prunes.
        optimizer: What trains the model; the host itself where it is an optimizer.
        steps: Whether ``step()`` is the loop's to call.
        penalty: Adds a sparsity term to the gradients.
        penalty_steps: Optimizer steps that have it.
        penalty_decay: Weight decay while they last; None: the optimizer's own.
    """

    def __init__(
        self,
        host: Any,
        optimizer: torch.optim.Optimizer,
        *,
        steps: bool = True,
        penalty: Callable[[], Any] = lambda: None,
        penalty_steps: int = 0,
        penalty_decay: float | None = None,
    ) -> None:
        self.host: Host = host
        self.optimizer = optimizer
        self._step = host.step if steps else None
        self._penalty, self._left = penalty, penalty_steps
        self._decay = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
        if penalty_steps and penalty_decay is not None:
            for group in optimizer.param_groups:
                group["weight_decay"] = penalty_decay

    def observe(self) -> None:
        """Let the host read the gradients, then add its penalty."""
        self.host.observe()
        if self._left > 0:
            self._left -= 1
            self._penalty()

    def step(self) -> None:
        """Let the host act."""
        if self._left == 0:
            for group, decay in zip(self.optimizer.param_groups, self._decay, strict=True):
                group["weight_decay"] = decay
        if self._step is not None:
            self._step()


def build(trial: Trial, model: nn.Module, example: Tensor, steps: int) -> Method:
    """The host of a trial on a model.

    Args:
        trial: Says which, in which variant.
        model: Dense.
        example: Inputs for one forward pass.
        steps: Optimizer steps to come.

    Raises:
        ValueError: The host has no such control.
    """
    smooth = trial.variant not in ("alone", "rounds")
    decay_steps = (trial.decay_steps or max(1, steps // 10)) if smooth else 1
    rectify = Rectify() if smooth and trial.variant != "sp" else None
    common = {"budget": Budget(macs=trial.budget), "rectify": rectify}
    if trial.variant == "random_selection" and trial.host != "default":
        raise ValueError("random_selection is a control of the default pruner.")
    builder = {
        "default": _default,
        "depgraph": _depgraph,
        "depgraph-sl": _depgraph,
        "dhspg": _dhspg,
        "hesso": _hesso,
        "gate": _gate,
    }[trial.host]
    method = builder(trial, model, example, steps, decay_steps, common)
    if trial.variant == "random_release":
        host: Any = method.host  # the hosts of OTO are optimizers, and their own selectors
        release_at_random(getattr(host, "_selector", host), trial.seed)
    return method


def _default(
    trial: Trial, model: nn.Module, example: Tensor, steps: int, decay: int, common: dict[str, Any]
) -> Method:
    plan = Schedule.for_run(steps, start=int(trial.start * steps))
    rounds, stop = plan.rounds, plan.stop
    if trial.variant == "rounds":
        rounds, stop = _ROUNDS, (plan.start + steps) // 2
    schedule = Schedule(start=plan.start, stop=stop, rounds=rounds, decay_steps=decay)
    random = {"importance": "random"} if trial.variant == "random_selection" else {}
    optimizer = optimizer_of(trial.training, model)
    host: Any = DecayPruner(
        model, optimizer, example, schedule=schedule, **common, **{**trial.options, **random}
    )
    return Method(host, optimizer)


def _depgraph(
    trial: Trial, model: nn.Module, example: Tensor, steps: int, decay: int, common: dict[str, Any]
) -> Method:
    """DepGraph as its authors run it: 400 iterative steps without training between them."""
    import torch_pruning as tp

    sparse = trial.host == "depgraph-sl"
    optimizer = optimizer_of(trial.training, model)
    usual = {"reg": 5e-4, "sparse": 0.0, "iterative_steps": 400, "max_pruning_ratio": 1.0}
    options = {**usual, **trial.options}
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    kind = tp.pruner.GroupNormPruner if sparse else tp.pruner.MetaPruner
    pruner = kind(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(
            p=2, **({"normalizer": "max"} if sparse else {})
        ),
        pruning_ratio=1.0,
        max_pruning_ratio=options["max_pruning_ratio"],
        iterative_steps=int(options["iterative_steps"]),
        global_pruning=True,
        ignored_layers=classifier,
        **({"reg": options["reg"]} if sparse else {}),
    )
    start = int(max(trial.start, options["sparse"] if sparse else 0.0) * steps)
    chunks = _ROUNDS if trial.variant == "rounds" else 1
    host = TorchPruningHost(
        pruner,
        optimizer,
        example,
        decay_steps=decay,
        start=start,
        chunks=chunks,
        interval=max(1, steps // (2 * chunks)) if chunks > 1 else None,
        **common,
    )
    return Method(
        host,
        optimizer,
        penalty=lambda: pruner.regularize(model),
        penalty_steps=start if sparse else 0,
        penalty_decay=options.get("sparse_weight_decay"),
    )


def _dhspg(
    trial: Trial, model: nn.Module, example: Tensor, steps: int, decay: int, common: dict[str, Any]
) -> Method:
    how = trial.training
    options = {"epsilon": 0.95, "stop_step": max(1, steps // 4), **trial.options}
    host = DHSPG(
        model,
        example,
        how.lr,
        variant=how.optimizer,
        momentum=how.momentum,
        weight_decay=how.weight_decay,
        start_step=int(trial.start * steps),
        decay_steps=decay,
        **common,
        **options,
    )
    return Method(host, host, steps=False)


def _hesso(
    trial: Trial, model: nn.Module, example: Tensor, steps: int, decay: int, common: dict[str, Any]
) -> Method:
    """HESSO decays by itself: alone it is as published, smooth variants hold its norms."""
    how = trial.training
    host = HESSO(
        model,
        example,
        how.lr,
        variant=how.optimizer,
        momentum=how.momentum,
        weight_decay=how.weight_decay,
        start_step=int(trial.start * steps),
        pruning_steps=max(_ROUNDS, steps // 4),
        pruning_periods=_ROUNDS,
        decay_steps=None if trial.variant == "alone" else decay,
        **common,
        **trial.options,
    )
    return Method(host, host, steps=False)


def _gate(
    trial: Trial, model: nn.Module, example: Tensor, steps: int, decay: int, common: dict[str, Any]
) -> Method:
    optimizer = optimizer_of(trial.training, model)
    options = dict(trial.options)
    ticks = options.pop("ticks", None)
    schedule = TickTock.for_run(steps) if ticks is None else TickTock(**ticks)
    if trial.decay_steps is None:  # a decay fits into a tick
        decay = min(decay, schedule.tick_steps)
    host = GateDecorator(model, optimizer, example, schedule=schedule, decay_steps=decay,
                         **common, **options)  # fmt: skip
    return Method(host, optimizer)
