"""Builds what prunes: a host, from a plan that the command or the study made.

A :class:`Plan` says which host, for which budget, when, and with which arguments of its own; one
builder per host turns it into a :class:`Pruning`, which a training loop treats alike whatever is
behind it. A new host is one builder, its name in :data:`BUILDERS`, and what the command
(:mod:`.plan`) and the study want of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from decayprune.cost import Budget
from decayprune.hosts import DHSPG, HESSO, GateDecorator, TorchPruningHost
from decayprune.method.rectify import Rectify
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.session.host import BesideOptimizer, Host

VARIANTS = ("alone", "sp", "sp_sr")
"""A host as published; with smooth pruning; with smooth pruning and self-rectifying."""

_ITERATIVE_STEPS = 400  # as in Torch-Pruning's own scripts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a host is to do.

    Attributes:
        host: One of :data:`HOSTS`.
        budget: What remains at the end.
        schedule: When it selects, in how many rounds, and ``N``. Gate Decorator selects by ticks.
        rectify: When a decaying structure is released; None: never.
        options: Arguments of the host (of Torch-Pruning's pruner for DepGraph) by name; they come
            last.
    """

    host: str
    budget: Budget
    schedule: Schedule
    rectify: Rectify | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def round_steps(self) -> int:
        """Steps that a round lasts at least: a replacement has a decay of its own."""
        return self.schedule.decay_steps * (2 if self.rectify else 1)

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that every host takes by the same name."""
        return {"budget": self.budget, "rectify": self.rectify}


@dataclass(frozen=True, eq=False)
class Pruning:
    """A host at work, and the optimizer that trains beside it or is it.

    Attributes:
        host: What prunes.
        optimizer: What trains from now on; the host itself where the host is an optimizer.
        schedule: ``N``, and when selection ends.
        rounds: Steps at which the host selects, as far as it knows them before.
        penalty: Adds a sparsity term to the gradients, up to the first round.
        penalty_decay: Weight decay up to then; None: the optimizer's own.
    """

    host: Host
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    rounds: tuple[int, ...]
    penalty: Callable[[], Any] | None = None
    penalty_decay: float | None = None

    @property
    def _beside(self) -> BesideOptimizer | None:
        """The host where it stands beside the optimizer: its step and state are the loop's."""
        return self.host if isinstance(self.host, BesideOptimizer) else None

    def observe(self) -> None:
        """Let the host read the gradients before they are clipped; then add its penalty."""
        self.host.observe()
        penalised = self.penalty is not None and self.host.steps < self.schedule.start
        if self.penalty_decay is not None:
            own = self.optimizer.defaults["weight_decay"]
            for group in self.optimizer.param_groups:
                group["weight_decay"] = self.penalty_decay if penalised else own
        if penalised and self.penalty is not None:
            self.penalty()

    def step(self) -> None:
        """Let the host act after the optimizer; one that is the optimizer has acted."""
        if self._beside is not None:
            self._beside.step()

    def state_dict(self) -> dict[str, Any]:
        """The host's state; empty where the optimizer's holds it."""
        return {} if self._beside is None else dict(self._beside.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; the model's and the optimizer's states are to be loaded after this one."""
        if self._beside is not None:
            self._beside.load_state_dict(state)


def build(plan: Plan, model: nn.Module, example: Any, optimizer: torch.optim.Optimizer) -> Pruning:
    """Build the host that a plan names.

    Args:
        plan: Its steps are counted from now.
        model: Some hosts change its modules until they compact it.
        example: Inputs for one forward pass.
        optimizer: SGD or AdamW over the model's parameters; a host that takes its place trains in
            the same way.

    Raises:
        ValueError: The budget cannot be reached, nothing can be pruned, or an argument does not
            fit.
    """
    return BUILDERS[plan.host](plan, model, example, optimizer)


def _default(
    plan: Plan, model: nn.Module, example: Any, optimizer: torch.optim.Optimizer
) -> Pruning:
    schedule = plan.schedule
    host = DecayPruner(
        model, optimizer, example, schedule=schedule, **{**plan.common, **plan.options}
    )
    rounds = tuple(schedule.begins(i) for i in range(schedule.rounds))
    return Pruning(host, optimizer, schedule, rounds)


def _as_base(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Arguments of a host that takes the place of an optimizer: the same training."""
    adamw = isinstance(optimizer, torch.optim.AdamW)
    keys = ("lr", "weight_decay") if adamw else ("lr", "weight_decay", "momentum")
    base = {key: optimizer.defaults[key] for key in keys}
    return {"variant": "adamw" if adamw else "sgd", **base}


def _dhspg(plan: Plan, model: nn.Module, example: Any, optimizer: torch.optim.Optimizer) -> Pruning:
    """OTOv2. What the half-space has not caught when selection ends is enrolled then."""
    schedule = plan.schedule
    arguments = {
        "epsilon": 0.95,
        "start_step": schedule.start,
        "stop_step": schedule.stop,
        "decay_steps": schedule.decay_steps,
        **plan.common,
    }
    host = DHSPG(model, example, **_as_base(optimizer), **{**arguments, **plan.options})
    return Pruning(host, host, schedule, (host.start_step + 1,))


def _hesso(plan: Plan, model: nn.Module, example: Any, optimizer: torch.optim.Optimizer) -> Pruning:
    """HESSO in as many periods as the schedule has rounds."""
    schedule = plan.schedule
    arguments = {
        "start_step": schedule.start,
        "pruning_steps": schedule.stop - schedule.start,
        "pruning_periods": schedule.rounds,
        "decay_steps": schedule.decay_steps,
        **plan.common,
    }
    host = HESSO(model, example, **_as_base(optimizer), **{**arguments, **plan.options})
    first = host.start_step + 1
    rounds = tuple(first + i * host.period for i in range(host.periods))
    return Pruning(host, host, schedule, rounds)


def _depgraph(
    plan: Plan, model: nn.Module, example: Any, optimizer: torch.optim.Optimizer
) -> Pruning:
    """DepGraph as its authors run it, or as told: global magnitude, 400 iterative steps at once.

    With sparse learning, norms of whole groups are penalised up to the first round, and compared
    with the largest of their layer.
    """
    try:
        import torch_pruning as tp
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The host {plan.host} needs Torch-Pruning: pip install 'decayprune[torch-pruning]'"
        ) from error
    sparse = plan.host == "depgraph-sl"
    kind = tp.pruner.GroupNormPruner if sparse else tp.pruner.MetaPruner
    usual = {"iterative_steps": _ITERATIVE_STEPS, "global_pruning": True, "pruning_ratio": 1.0}
    options = {**usual, **plan.options}
    penalty_decay = options.pop("sparse_weight_decay", None)
    pruner = kind(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(
            p=2, normalizer="max" if sparse else "mean"
        ),
        **options,
    )
    schedule = plan.schedule
    interval = max(plan.round_steps, (schedule.stop - schedule.start) // schedule.rounds)
    host = TorchPruningHost(
        pruner,
        optimizer,
        example,
        decay_steps=schedule.decay_steps,
        start=schedule.start,
        chunks=schedule.rounds,
        interval=interval,
        **plan.common,
    )
    rounds = tuple(max(1, schedule.start) + i * interval for i in range(schedule.rounds))
    penalty = (lambda: pruner.regularize(model)) if sparse else None
    return Pruning(host, optimizer, schedule, rounds, penalty, penalty_decay)


def _gate_decorator(
    plan: Plan, model: nn.Module, example: Any, optimizer: torch.optim.Optimizer
) -> Pruning:
    """Gate Decorator; its ``schedule`` is among the options."""
    decay_steps = plan.schedule.decay_steps
    host = GateDecorator(
        model, optimizer, example, decay_steps=decay_steps, **plan.common, **plan.options
    )
    schedule = replace(plan.schedule, stop=host.schedule.stop or plan.schedule.stop, rounds=1)
    return Pruning(host, optimizer, schedule, (1,))


BUILDERS: dict[str, Callable[[Plan, nn.Module, Any, torch.optim.Optimizer], Pruning]] = {
    "default": _default,
    "dhspg": _dhspg,
    "hesso": _hesso,
    "depgraph": _depgraph,
    "depgraph-sl": _depgraph,
    "gate-decorator": _gate_decorator,
}

HOSTS = tuple(BUILDERS)
"""Ours, OTOv2, HESSO, DepGraph without and with sparse learning, Gate Decorator."""
