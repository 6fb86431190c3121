"""Builds what prunes in a run: the pruning method that ``--host`` names, in one of three variants.

One builder function per host; everything else treats all of them alike. Every host gets the same
budget, the same steps to select in and the same ``N`` (Gate Decorator no more than a tick, unless
told). A variant says how it uses them: *alone* is the method as published, *sp* adds smooth
pruning, and *sp+sr* lets it change its mind as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from decayprune.app.run.settings import Settings
from decayprune.cost import Budget
from decayprune.hosts import DHSPG, HESSO, GateDecorator, TickTock, TorchPruningHost
from decayprune.hosts.otov2.penalty import PENALTIES
from decayprune.inspection import inspect
from decayprune.method.lifecycle import LifecycleState
from decayprune.method.rectify import Rectify
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.session.host import Host

_ITERATIVE_STEPS = 400  # as in Torch-Pruning's own scripts
_PERIODS = 10  # as published


@dataclass(frozen=True, eq=False)
class Pruning:
    """A host at work, and the optimizer that trains beside it or is it.

    Attributes:
        host: What prunes.
        optimizer: What trains from now on; the host itself where the host is an optimizer.
        schedule: ``N``, and when selection ends.
        rounds: Steps at which the host selects, as far as it knows them before.
    """

    host: Host
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    rounds: tuple[int, ...]

    @property
    def lifecycle(self) -> LifecycleState:
        """Where every structure stands."""
        return self.host.lifecycle

    def observe(self) -> None:
        """Let the host read the gradients before they are clipped."""
        self.host.observe()

    def step(self) -> None:
        """Let the host act after the optimizer; one that is the optimizer has acted."""
        host: Any = self.host
        if host is not self.optimizer:
            host.step()

    def state_dict(self) -> dict[str, Any]:
        """The host's state; empty where the optimizer's holds it."""
        host: Any = self.host
        return {} if host is self.optimizer else dict(host.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; the model's and the optimizer's states are to be loaded after this one."""
        host: Any = self.host
        if host is not self.optimizer:
            host.load_state_dict(state)


@dataclass(frozen=True, eq=False)
class _Task:
    """What a builder gets."""

    settings: Settings
    model: nn.Module
    example: Any
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    steps: int

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that every host takes."""
        settings = self.settings
        return {
            "budget": Budget(macs=settings.budget, params=settings.params_budget),
            "rectify": Rectify() if settings.variant == "sp+sr" else None,
        }

    @property
    def sgd(self) -> dict[str, Any]:
        """Arguments of a host that takes the place of the optimizer: the same training."""
        keys = ("lr", "momentum", "weight_decay")
        return {key: self.optimizer.defaults[key] for key in keys}

    def beside(self, host: Host, rounds: tuple[int, ...]) -> Pruning:
        return Pruning(host, self.optimizer, self.schedule, rounds)

    def instead(self, host: DHSPG | HESSO, rounds: tuple[int, ...]) -> Pruning:
        return Pruning(host, host, self.schedule, rounds)


def build(
    settings: Settings,
    model: nn.Module,
    example: Any,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    steps: int,
) -> Pruning:
    """Build the host that the settings name.

    Args:
        settings: Resolved.
        model: Dense and trained; some hosts change its modules until they compact it.
        example: Inputs for one forward pass.
        optimizer: Plain SGD over the model's parameters.
        schedule: Steps are counted from now.
        steps: Optimizer steps to come, fine-tuning included.

    Raises:
        ValueError: The budget cannot be reached, nothing can be pruned, or a setting does not fit.
    """
    return BUILDERS[settings.host](_Task(settings, model, example, optimizer, schedule, steps))


def _default(task: _Task) -> Pruning:
    schedule, importance = task.schedule, task.settings.importance
    host = DecayPruner(
        task.model,
        task.optimizer,
        task.example,
        schedule=schedule,
        importance=importance,
        **task.common,
    )
    return task.beside(host, tuple(schedule.begins(i) for i in range(schedule.rounds)))


def _dhspg(task: _Task) -> Pruning:
    """OTOv2. What the half-space has not caught when selection ends is enrolled then.

    The published penalty is made for a hundred epochs. Here it is as strong as takes a length of
    about 10 in the steps that there are, at the rate of pruning (half the peak).
    """
    stop = max(1, task.schedule.stop)
    host = DHSPG(
        task.model,
        task.example,
        epsilon=0.95,
        tolerance_group_sparsity=0.0,  # more than the budget needs would miss it from below
        lmbda=max(PENALTIES["sgd"].lmbda, 20 / (task.settings.lr * stop)),
        stop_step=stop,
        decay_steps=task.schedule.decay_steps,
        **task.sgd,
        **task.common,
    )
    return task.instead(host, (1,))


def _hesso(task: _Task) -> Pruning:
    """HESSO decays by itself; the smooth variants hold its norms to the schedule."""
    steps = max(1, task.schedule.stop)
    periods = min(task.settings.rounds or _PERIODS, steps)
    host = HESSO(
        task.model,
        task.example,
        pruning_steps=steps,
        pruning_periods=periods,
        decay_steps=None if task.settings.variant == "alone" else task.schedule.decay_steps,
        **task.sgd,
        **task.common,
    )
    return task.instead(host, tuple(1 + i * host.period for i in range(periods)))


def _torch_pruning(task: _Task) -> Pruning:
    """DepGraph as its authors run it: global magnitude, in 400 iterative steps, at once."""
    try:
        import torch_pruning as tp
    except ModuleNotFoundError as error:
        raise ValueError(
            "--host torch-pruning needs Torch-Pruning: pip install 'decayprune[torch-pruning]'"
        ) from error
    refused = {refusal.layer for refusal in inspect(task.model, task.example).structures.refusals}
    pruner = tp.pruner.MetaPruner(
        task.model,
        task.example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=_ITERATIVE_STEPS,
        ignored_layers=[module for name, module in task.model.named_modules() if name in refused],
    )
    schedule, chunks = task.schedule, task.settings.rounds or 1
    needed = schedule.decay_steps * (2 if task.common["rectify"] else 1)
    interval = schedule.stop // chunks
    if chunks > 1 and interval < needed:
        raise ValueError(
            f"--rounds {chunks} leaves {interval} steps for each, and a round of --host "
            f"torch-pruning needs {needed}. Lower --rounds or --decay-steps."
        )
    interval = max(interval, needed)
    host = TorchPruningHost(
        pruner,
        task.optimizer,
        task.example,
        decay_steps=schedule.decay_steps,
        chunks=chunks,
        interval=interval,
        **task.common,
    )
    return task.beside(host, tuple(max(1, i * interval) for i in range(chunks)))


def _gate_decorator(task: _Task) -> Pruning:
    """Gate Decorator with the ticks of a short run."""
    ticks = TickTock.for_run(min(task.steps, 8 * task.schedule.stop))  # not after the others select
    decay_steps = task.schedule.decay_steps
    if task.settings.decay_steps is None:
        decay_steps = min(decay_steps, ticks.tick_steps)
    host = GateDecorator(
        task.model,
        task.optimizer,
        task.example,
        schedule=ticks,
        decay_steps=decay_steps,
        tock_lr=None,  # as for the other hosts
        **task.common,
    )
    stop = ticks.stop or task.schedule.stop
    schedule = replace(task.schedule, stop=stop, rounds=1, decay_steps=decay_steps)
    return Pruning(host, task.optimizer, schedule, (1,))


BUILDERS: dict[str, Callable[[_Task], Pruning]] = {
    "default": _default,
    "dhspg": _dhspg,
    "hesso": _hesso,
    "torch-pruning": _torch_pruning,
    "gate-decorator": _gate_decorator,
}
"""By the names of ``--host``."""
