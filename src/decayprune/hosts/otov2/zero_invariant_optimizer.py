"""What DHSPG and HESSO share: zero-invariant groups, the base optimizer step, the host's surface.

Both are optimizers that prune while they train (Only Train Once). Their structures are
*zero-invariant groups*: the rows, biases and norm affine of a channel, not the columns of its
consumers; with all of them zero the channel is silent, so the consumers' columns do not matter.
The base class turns gradients into a direction (SGD, Adam, AdamW), lets the host look at weights
and directions, steps, and hands over to a :class:`~decayprune.method.decayer.Decayer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from decayprune.cost import Budget
from decayprune.hosts.otov2.directions import Variant, defaults_of, directions
from decayprune.hosts.otov2.products import StructureSums
from decayprune.hosts.otov2.zero_invariant import ROLES, check_numbers, left_alone
from decayprune.method.moves import Moves
from decayprune.method.rectify import Rectify, Verdict
from decayprune.method.selector import Selector
from decayprune.selection.target import Target
from decayprune.session import arguments, resume
from decayprune.session.host import Host
from decayprune.session.integrity import check_free
from decayprune.session.session import Session
from decayprune.structures.example import ExampleInputs

NEVER = 2**31 - 1
"""A step that no run reaches."""


class ZeroInvariantOptimizer(Host, torch.optim.Optimizer, ABC):
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
    """

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
    ) -> None:
        check_numbers(lr, group_divisible, decay_steps, target)
        check_free(model)
        if budget is not None:
            arguments.check_kind("budget", budget, Budget, "dp.Budget(macs=0.5)")
        super().__init__(
            model.parameters() if params is None else params, defaults_of(variant, lr, **base)
        )
        small = group_divisible if leave_small else 0
        self._session = Session(
            model,
            self,
            example_inputs,
            ignored_layers=ignored_layers,
            refine=lambda found: found.without(left_alone(found, small)),
            roles=ROLES,
            name="optimizer",
        )
        self.variant, self.budget, self.rectify = variant, budget, rectify
        self.group_divisible, self.decay_steps, self.target = group_divisible, decay_steps, target
        # The consumers' columns are no part of a zero-invariant group.
        self._parameters = self._session.parameters
        self._sums = StructureSums(self._session.held(), self._parameters)

    def _begin(
        self,
        selector: Selector,
        target: Target,
        *,
        last_release: int,
        slices: Literal["carriers", "all"],
        hold: bool = True,
        verdict: Verdict | None = None,
    ) -> None:
        """Take hold of the model, once the host has its selector.

        Args:
            selector: Who decays.
            target: What has to be reached at the end.
            last_release: Step from which nothing is released.
            slices: Which slices shrink while a structure decays.
            hold: Hold norms to the schedule.
            verdict: Says who is released; None: the rule of ``rectify``.

        Raises:
            ValueError: The target cannot be reached.
        """
        self._check_reachable(target)
        self._session.begin(
            self,
            selector,
            decay_steps=self.decay_steps,
            slices=slices,
            rectify=self.rectify,
            verdict=verdict,
            last_release=last_release,
            hold=hold,
            pin_carriers=True,
            watch=False,
        )

    # ---------------------------------------------------------------- what a host decides

    @abstractmethod
    def _look(self, step: int, direction: Mapping[str, Tensor]) -> None:
        """See weights and directions before the update; penalise."""

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
        self._session.has_gradients("step")
        if self._session.report is not None:
            self._update(directions(self.param_groups, self.state))
            return loss
        self._session.remember()
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
        self._follow()
        return loss

    def _follow(self) -> None:
        if moves := self._session.follow():
            self._moved(moves)

    def _moved(self, moves: list[Moves]) -> None:
        """Something started to decay, was released, or is gone."""

    def _update(self, direction: Mapping[nn.Parameter, Tensor]) -> None:
        for group in self.param_groups:
            moving = [p for p in group["params"] if p in direction]
            if not moving:
                continue
            if group["decoupled_weight_decay"]:
                torch._foreach_mul_(moving, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(moving, [direction[p] for p in moving], alpha=-group["lr"])

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the pruning's, as tensors, strings and numbers."""
        return {**torch.optim.Optimizer.state_dict(self), "pruning": Host.state_dict(self)}

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
        before = self.state_dict()
        resume.check(state_dict["pruning"], before["pruning"])
        resume.take_up(self._restore_both, state_dict, before)

    def _restore_both(self, state: Mapping[str, Any]) -> None:
        torch.optim.Optimizer.load_state_dict(self, dict(state))
        self._restore(state["pruning"])

    def _settings(self) -> dict[str, Any]:
        own = {
            "variant": self.variant,
            "target_group_sparsity": self.target,
            "decay_steps": self.decay_steps,
            "group_divisible": self.group_divisible,
        }
        return own | resume.flat(budget=self.budget, rectify=self.rectify)

    def _own_state(self) -> dict[str, Any]:
        return {"own": self._selection_state()}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        self._load_selection(state["own"])

    def _selection_state(self) -> dict[str, Any]:
        return {}

    def _load_selection(self, own: Mapping[str, Any]) -> None:
        pass
