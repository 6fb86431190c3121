"""What DHSPG and HESSO share: zero-invariant groups, the base optimizer step, the host's surface.

Both are optimizers that prune while they train (Only Train Once). Their structures are
*zero-invariant groups*: the rows, biases and norm affine of a channel, not the columns of its
consumers; with all of them zero the channel is silent, so the consumers' columns do not matter.
The base class turns gradients into a direction (SGD, Adam, AdamW), lets the host look at weights
and directions, steps, and hands over to a :class:`~decayprune.method.decayer.Decayer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from decayprune.cost import Budget, CostModel
from decayprune.hosts.otov2.directions import Variant, defaults_of, directions
from decayprune.hosts.otov2.products import StructureSums
from decayprune.hosts.otov2.zero_invariant import ROLES, check_numbers, left_alone
from decayprune.method.decay import linear
from decayprune.method.decayer import Decayer
from decayprune.method.lifecycle import Event, LifecycleState
from decayprune.method.rectify import Rectify, Verdict
from decayprune.method.selector import Selector
from decayprune.selection.target import Target
from decayprune.session import arguments, resume
from decayprune.structures.example import ExampleInputs
from decayprune.structures.tracing.trace import trace
from decayprune.surgery.compact import CompactionReport, compact
from decayprune.surgery.copies import refuse_late
from decayprune.surgery.cut import refuse_uncuttable

_ORDER = "loss.backward(); optimizer.step(); optimizer.zero_grad()"
NEVER = 2**31 - 1
"""A step that no run reaches."""


class ZeroInvariantOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that prunes zero-invariant groups while it trains.

    Args:
        model: The bare module, trained in place.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        lr: Learning rate.
        variant: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        base: Hyper-parameters of the base step, as in :func:`directions.defaults_of`.
        params: What to train, as for any torch optimizer; None: all parameters of the model.
        ignored_layers: Names, globs or modules whose output widths are left alone.
        group_divisible: Each width keeps a multiple of it.
        leave_small: Leave widths that are no larger than it out of all counts.
        budget: What remains at the end, instead of ``target``.
        target: Share of the structures to prune.
        decay_steps: ``N`` of smooth pruning.
        rectify: When a decaying structure is released.
        last_release: Step from which nothing is released.
        slices: Which slices shrink while a structure decays.
        hold: Hold norms to the schedule.
        verdict: Says who is released; None: the rule of ``rectify``.
    """

    _selector: Selector
    """Who decays; a host sets its own."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        lr: float,
        *,
        variant: Variant,
        base: Mapping[str, Any],
        params: Iterable[Any] | None,
        ignored_layers: Iterable[str | nn.Module],
        group_divisible: int,
        leave_small: bool,
        budget: Budget | None,
        target: float,
        decay_steps: int,
        rectify: Rectify | None,
        last_release: int,
        slices: Literal["carriers", "all"],
        hold: bool,
        verdict: Verdict | None = None,
    ) -> None:
        check_numbers(lr, group_divisible, decay_steps, target)
        arguments.check_slices(slices)
        arguments.check_free(model)
        if budget is not None:
            arguments.check_kind("budget", budget, Budget, "dp.Budget(macs=0.5)")
        super().__init__(
            model.parameters() if params is None else params, defaults_of(variant, lr, **base)
        )
        structures = trace(model, example_inputs, ignored_layers)
        structures = structures.without(
            left_alone(structures, group_divisible if leave_small else 0)
        )
        structures = refuse_uncuttable(model, structures, example_inputs, ROLES)
        arguments.check_prunable(structures)
        self.model, self.structures, self.variant = model, structures, variant
        self.budget, self.rectify, self.group_divisible = budget, rectify, group_divisible
        self.decay_steps, self.target = decay_steps, target
        self._example_inputs = example_inputs
        # The consumers' columns are no part of a zero-invariant group.
        own = replace(structures, slices=tuple(s for s in structures.slices if s.role in ROLES))
        names = {item.name for item in own.slices}
        self._parameters = {n: p for n, p in model.named_parameters() if n in names}
        arguments.check_held(self._parameters, [self])
        self._sums = StructureSums(own, self._parameters)
        self.cost = CostModel(structures, {n: p.shape for n, p in model.named_parameters()})
        self._decayer = Decayer(
            own,
            self._parameters,
            [self],
            curve=linear,
            decay_steps=decay_steps,
            slices=slices,
            rectify=rectify,
            verdict=verdict,
            last_release=last_release,
            hold=hold,
            pin=True,
        )
        self.steps, self.waited = 0, 0
        self.events: list[Event] = []
        self._report: CompactionReport | None = None
        self._observed = False
        arguments.claim(model, self)

    # ---------------------------------------------------------------- what a host decides

    @abstractmethod
    def _look(self, step: int, direction: Mapping[str, Tensor]) -> None:
        """See weights and directions before the update; penalise."""

    # ---------------------------------------------------------------- what a user reads

    @property
    def lifecycle(self) -> LifecycleState:
        """Where every structure stands (``state`` is the optimizer's own)."""
        return self._decayer.state

    @property
    def finished(self) -> bool:
        """Whether the target is met and nothing decays any more."""
        decaying = bool(self.lifecycle.decaying.numel())
        return not decaying and self._selector.done(self.lifecycle, self.steps)

    def remaining(self) -> dict[str, float]:
        """MACs, parameters and structures that remain, commitments counted, as fractions."""
        return self.cost.fractions(self._kept(), ["macs", "params", "structures"])

    def _rates(self) -> dict[str, tuple[float, float]]:
        """Learning rate and decoupled weight decay of every parameter, by name."""
        rates = {}
        for group in self.param_groups:
            decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
            rates.update({id(p): (float(group["lr"]), float(decay)) for p in group["params"]})
        return {name: rates[id(p)] for name, p in self._parameters.items()}

    def _check_reachable(self, final: Target) -> None:
        if final.met(final.floor):
            return
        target = f"target_group_sparsity={self.target}"
        wanted = target if self.budget is None else f"budget {self.budget}"
        left = self.cost.fractions(final.floor, ["macs", "params", "structures"])
        reachable = ", ".join(f"{name} {share:.3g}" for name, share in left.items())
        raise ValueError(
            f"The {wanted} cannot be reached. With every width at its floor (group_divisible="
            f"{self.group_divisible}) the model keeps {reachable}. Ask for less, lower "
            "group_divisible, or put fewer layers into ignored_layers; dp.inspect(model, "
            "example_inputs) says which widths are left alone and why."
        )

    def _kept(self) -> Tensor:
        return self.cost.keep_counts(self.lifecycle.committed.cpu())

    # ---------------------------------------------------------------- what a loop calls

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One optimizer step, and what pruning does with it.

        Args:
            closure: Computes the loss and its gradients again, as for any torch optimizer.

        Raises:
            RuntimeError: No parameter has a gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_gradients()
        if self._report is not None:
            self._update(directions(self.param_groups, self.state))
            return loss
        self._decayer.remember()
        if self.rectify is not None and not self._observed:
            self._decayer.observe()
        direction = directions(self.param_groups, self.state)
        named = {n: direction.get(p) for n, p in self._parameters.items()}
        self._look(
            self.steps + 1,
            {
                n: torch.zeros_like(self._parameters[n]) if d is None else d
                for n, d in named.items()
            },
        )
        self._update(direction)
        events = self._decayer.step(self.steps + 1, self._selector)
        self._observed = False
        if resume.follow(self, events) and events:
            self._moved(events)
        return loss

    def _moved(self, events: list[Event]) -> None:
        """Something started to decay, was released, or is gone."""

    def _update(self, direction: Mapping[nn.Parameter, Tensor]) -> None:
        for group in self.param_groups:
            moving = [p for p in group["params"] if p in direction]
            if not moving:
                continue
            if group["decoupled_weight_decay"]:
                torch._foreach_mul_(moving, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(moving, [direction[p] for p in moving], alpha=-group["lr"])

    def observe(self) -> None:
        """Read gradients now, before clipping or a sparsity term changes them.

        Optional; call it after ``backward()`` (and ``scaler.unscale_()``). Without it the
        gradients are read in :meth:`step`.

        Raises:
            RuntimeError: There are no gradients.
        """
        if self._report is not None or self.rectify is None:
            return
        self._check_gradients()
        self._decayer.remember()
        self._decayer.observe()
        self._observed = True

    def compact(
        self,
        *,
        tolerance: float | None = None,
        copies: nn.Module | Sequence[nn.Module] = (),
    ) -> CompactionReport:
        """Remove the pruned structures from the model, in place, once the host has finished.

        The optimizer stays bound and goes on as its plain base.

        Args:
            tolerance: Largest error relative to the largest output; None for the dtype's default.
            copies: Copies of the model with weights of their own (moving averages, wrapped as
                ``AveragedModel`` or bare), zeroed and cut at the same structures.

        Raises:
            RuntimeError: Structures still decay, the target is not met yet, a living
                DistributedDataParallel wraps the model, or copies come after it was cut.
            ValueError: A copy is none; nothing was cut.
            CompactionError: Outputs would change; the model and its copies were left uncut.
        """
        if self._report is not None:
            refuse_late(copies)
            return self._report
        if not self.finished:
            raise RuntimeError(
                f"compact() before {type(self).__name__} has finished: at step {self.steps} "
                f"{self.lifecycle.decaying.numel()} structures decay and "
                f"{self.remaining()['structures']:.1%} of all remain. Train until finished is True."
            )
        self._report = compact(
            self.model,
            self.structures,
            self.lifecycle.pruned,
            example_inputs=self._example_inputs,
            optimizers=[self],
            copies=copies,
            tolerance=tolerance,
            roles=ROLES,
        )
        self.close()
        return self._report

    def close(self) -> None:
        """Let go of the model: another pruner may start."""
        arguments.give_up(self.model, self)

    def _check_gradients(self) -> None:
        trained = (p for group in self.param_groups for p in group["params"])
        arguments.check_gradients(trained, type(self).__name__, _ORDER)

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the pruning's, as tensors, strings and numbers."""
        return {**super().state_dict(), "pruning": self._pruning()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, bit for bit.

        Raises:
            ValueError: It belongs to another optimizer, model, or other settings.
        """
        if "pruning" not in state_dict:
            raise ValueError(
                f"Expected what the state_dict() of a {type(self).__name__} returned, found the "
                "state of a plain optimizer."
            )
        saved = state_dict["pruning"]
        resume.check(saved, self._pruning())
        super().load_state_dict(state_dict)
        self._decayer.load(resume.go_on(self, saved, self.lifecycle))
        self._load_own(saved["own"])

    def _pruning(self) -> dict[str, Any]:
        shared = resume.saved(self, self.structures, self.lifecycle, self._settings())
        return shared | {"own": self._own_state()}

    def _settings(self) -> dict[str, Any]:
        own = {
            "variant": self.variant,
            "target_group_sparsity": self.target,
            "decay_steps": self.decay_steps,
            "group_divisible": self.group_divisible,
        }
        return own | resume.flat(budget=self.budget, rectify=self.rectify)

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own(self, own: Mapping[str, Any]) -> None:
        pass
