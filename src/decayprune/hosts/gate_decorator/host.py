"""Gate Decorator: gates on batch norms, scored in ticks, closed a few at a time.

The host puts a gate into every batch norm that carries a prunable width, trains by ticks and tocks
(:mod:`decayprune.hosts.gate_decorator.ticks`) and closes the gates with the lowest Taylor score
until the budget holds. Closing is abrupt with ``decay_steps=1``, as published; with more steps
``|g|`` decays.

Source: You et al., Gate Decorator: Global Filter Pruning Method for Accelerating Deep Convolutional
Neural Networks, NeurIPS 2019, arXiv 1909.08174. Departures: docs/hosts/gate-decorator.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.cost import Budget
from decayprune.hosts.gate_decorator import gates
from decayprune.hosts.gate_decorator.gate_selection import NEVER, GateSelector
from decayprune.hosts.gate_decorator.tick_rates import TickRates
from decayprune.hosts.gate_decorator.ticks import TickTock, least_open
from decayprune.method.decay import Curve
from decayprune.method.lifecycle import ACTIVE
from decayprune.method.rectify import Rectify
from decayprune.session import arguments, resume
from decayprune.session.host import BesideOptimizer
from decayprune.session.session import Session
from decayprune.session.step_watch import grad_scale
from decayprune.structures.example import ExampleInputs
from decayprune.structures.twin import own_storage, twin
from decayprune.structures.wrappers import check_unwrapped
from decayprune.surgery.compact import CompactionReport
from decayprune.surgery.copies import Copies, matching
from decayprune.surgery.undo import Undo


class GateDecorator(BesideOptimizer):
    """Prunes by gates on batch norms, in ticks and tocks.

    Example::

        host = GateDecorator(model, optimizer, inputs, budget=Budget(macs=0.5),
                             schedule=TickTock(tick_steps=391, tock_steps=3910))
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step(); host.step(); optimizer.zero_grad()
        report = host.compact()  # the gates melt into the batch norms, then the channels leave

    Args:
        model: Trained already, as a rule. Its batch norms are gated in place and put back by
            :meth:`compact`.
        optimizer: Holds the model's parameters. Its learning rates are the host's until the ticks
            have reached the budget.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        budget: What remains in the end.
        schedule: Lengths of ticks and tocks, and how much a tick closes.
        decay_steps: ``N``; 1 closes a gate at once, as published. Decays that outlast a tick are
            half open when the next one scores, which costs accuracy (docs/study.md).
        rectify: When a closing gate is released; None for smooth pruning alone.
        sparsity: Weight of the L1 penalty on gates during tocks.
        tick_lr: Learning rate of ticks; None leaves the loop's own.
        tock_lr: Lowest and highest learning rate of tocks; None leaves the loop's own.
        minimal: Share of each width that stays in any case.
        decay: ``"linear"``, ``"cosine"``, or a function of progress.
        ignored_layers: Names, globs or modules whose output widths are left alone.

    Attributes:
        structures: What is pruned; groups that no gate can hold are among its refusals.

    Raises:
        ValueError: No width ends in batch norms, the budget cannot be reached, or an argument is
            out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        example_inputs: ExampleInputs,
        *,
        budget: Budget,
        schedule: TickTock,
        decay_steps: int = 1,
        rectify: Rectify | None = None,
        sparsity: float = 1e-3,
        tick_lr: float | None = 1e-3,
        tock_lr: tuple[float, float] | None = (1e-3, 1e-2),
        minimal: float = 0.1,
        decay: str | Curve = "linear",
        ignored_layers: Sequence[str | nn.Module] = (),
    ) -> None:
        if decay_steps < 1:
            raise ValueError(f"decay_steps is at least 1 (at once), found {decay_steps}.")
        if not 0 <= minimal < 1:
            raise ValueError(f"minimal is a share of each width in [0, 1), found {minimal}.")
        curve = arguments.as_curve(decay)
        arguments.check_kind("budget", budget, Budget, "dp.Budget(macs=0.5)")
        arguments.check_kind("schedule", schedule, TickTock, "TickTock.for_run(total_steps)")
        self._session = Session(
            model,
            optimizer,
            example_inputs,
            ignored_layers=ignored_layers,
            refine=partial(gates.gateable, model),
        )
        self.budget, self.schedule, self.rectify = budget, schedule, rectify
        self.decay_steps, self._sparsity = decay_steps, sparsity
        least = least_open(self.cost.sizes, minimal)
        self._check_reachable(least)
        self._homes, count = gates.located(self.structures, self._session.parameters)
        self._selector = GateSelector(
            self.structures, self.cost, budget, schedule, rectify, count, least, decay_steps
        )
        self._norms, optimizers = gates.gated(self.structures), self._session.optimizers
        gates.gate(model, self._norms)
        gates.forget_moments(Undo(), model, self._norms, optimizers)
        self._frozen = [
            p
            for m in model.modules()
            if isinstance(m, nn.modules.conv._ConvNd)
            for p in m.parameters(recurse=False)
        ]
        self._noted: Tensor | None = None  # scores of a step not counted yet
        self._rates = TickRates(optimizers, tick_lr, tock_lr)
        self._session.begin(
            self,
            self._selector,
            curve=curve,
            decay_steps=decay_steps,
            rectify=rectify,
            last_release=NEVER,
        )

    # ---------------------------------------------------------------- what a loop calls

    def observe(self) -> None:
        """Read gradients now, before clipping changes them.

        Optional; call it after ``backward()`` (and ``scaler.unscale_()``). Without it they are
        read when the optimizer steps.
        """
        if self._session.report is None and not self.finished:
            self._observe(1.0)

    def step(self) -> None:
        """Follow one optimizer step: release, close gates at the end of a tick, shrink, zero.

        Call it after ``optimizer.step()``. Where no step was taken (accumulation, a step that
        GradScaler skipped) nothing happens.

        Raises:
            RuntimeError: There are no gradients, or the model was changed by others.
        """
        super().step()
        self._noted = None  # also what a step that was skipped has left

    def _follow(self) -> None:
        noted, self._noted = self._noted, None
        if self.finished:
            return
        self._session.anatomy.check()
        if noted is None:
            raise RuntimeError(
                "The optimizer stepped, and no gate had a gradient. The order is: loss.backward(); "
                "optimizer.step(); host.step(); optimizer.zero_grad()"
            )
        before, ticking = self._selector.score, not self._selector.reached
        self._selector.collect(self.steps + 1, noted.cpu())
        if self._session.follow() is None:
            self._selector.score = before
            return
        self._session.decayer.last_release = self._selector.last_release
        if ticking and self._selector.reached:
            self._rates.give_back()

    def _for_trial(self) -> nn.Module:
        """A twin without gates."""
        copy = twin(self.model)
        own_storage([p for n in self._norms for p in copy.get_submodule(n).parameters()])
        gates.melt(Undo(), copy, self._norms)
        return copy

    def _cut(self, tolerance: float | None, copies: Copies) -> CompactionReport:
        """Melt the gates into their batch norms and remove what is closed, in place.

        Copies were made after this host, so that they have its gates.
        """
        check_unwrapped(self.model)  # before anything melts
        others = matching(copies, self.model)
        undo = Undo()
        try:
            for model in (self.model, *others):
                gates.melt(undo, model, self._norms)
            gates.forget_moments(undo, self.model, self._norms, self._session.optimizers)
            return self._session.cut(tolerance, others)
        except BaseException:
            undo.run()
            raise

    # ---------------------------------------------------------------- before the optimizer steps

    def _before_step(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        if self.finished:
            return
        self._session.remember(optimizer, first=first)
        if first and self._noted is None:
            self._observe(grad_scale(optimizer))
        if self._selector.reached:
            return  # gates that still close do so while the loop trains as it likes
        if first:
            self._shape_gradients(grad_scale(optimizer))
        self._rates.set(optimizer, self.schedule.phase(self.steps + 1))

    def _observe(self, scale: Tensor | float) -> None:
        """Note score and resistance while gradients are those of the task alone."""
        if self.rectify is not None:
            self._session.decayer.observe(scale)
        grads = [gate.grad for gate, _ in self._homes]
        if all(grad is None for grad in grads):
            return
        size = self.structures.num_structures
        total = torch.zeros(size + 1, device=self.lifecycle.phase.device)
        for (gate, labels), grad in zip(self._homes, grads, strict=True):
            if grad is not None:
                part = (gate.detach() * grad).abs() / scale
                total.index_add_(0, labels, part.to(total.dtype))
        self._noted = total[:size]

    @torch.no_grad()
    def _shape_gradients(self, scale: Tensor | float) -> None:
        """Ticks train no convolutions; tocks pull open gates towards zero."""
        phase = self.schedule.phase(self.steps + 1)
        if phase.tick:
            # Hiding the gradient freezes a parameter, momentum and weight decay included, and
            # leaves requires_grad alone, which DistributedDataParallel must not see changing.
            for parameter in self._frozen:
                parameter.grad = None
            return
        if not self._sparsity:
            return
        pulled = torch.cat(
            [self.lifecycle.phase == ACTIVE, self.lifecycle.phase.new_zeros(1).bool()]
        )
        for gate, labels in self._homes:
            if gate.grad is not None:
                gate.grad += scale * self._sparsity * gate.sign() * pulled[labels]

    # ---------------------------------------------------------------- save and resume

    def _own_state(self) -> dict[str, Any]:
        return {"selector": self._selector.state_dict(), "rates": self._rates.own}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        self._selector.load_state_dict(state["selector"])
        self._session.decayer.last_release = self._selector.last_release
        self._rates.own = state["rates"]
        self._noted = None

    def _settings(self) -> dict[str, Any]:
        parts = {"budget": self.budget, "schedule": self.schedule, "rectify": self.rectify}
        own = {"decay_steps": self.decay_steps, "sparsity": self._sparsity}
        return own | resume.flat(**parts)

    # ---------------------------------------------------------------- inside

    def _check_reachable(self, least: Tensor) -> None:
        if self.cost.meets(self.budget, least):
            return
        lowest = self.cost.fractions(least, list(self.budget.bounds))
        reachable = ", ".join(f"{name}={share:.4g}" for name, share in lowest.items())
        raise ValueError(
            f"The budget {self.budget} cannot be reached: with every gated width at its minimum "
            f"the model keeps {reachable}. Raise the budget, lower minimal, or see "
            f"structures.refusals for the {len(self.structures.refusals)} widths without a gate."
        )
