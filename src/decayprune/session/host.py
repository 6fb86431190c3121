"""What a user meets on every pruning method: the same words, each written once.

A host is a pruning method that selects; :class:`~decayprune.pruner.DecayPruner` is our own. It
holds a :class:`~decayprune.session.session.Session` and adds its choice: a constructor, a selector,
and what it has to save of itself. ``docs/extend/host.md`` builds one from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, SupportsIndex

import torch
from torch import nn

from decayprune.cost import CostModel
from decayprune.method.lifecycle import Event, LifecycleState
from decayprune.method.rectify import c_rate
from decayprune.session import resume
from decayprune.session.session import Session
from decayprune.structures.structure_map import StructureMap
from decayprune.surgery.compact import CompactionReport
from decayprune.surgery.copies import Copies


class Host:
    """A pruning method at work on a model.

    A subclass makes its session, and calls :meth:`Session.begin` at the end of its constructor.
    """

    _session: Session

    # ---------------------------------------------------------------- what a user reads

    @property
    def model(self) -> nn.Module:
        """The model that is pruned in place."""
        return self._session.model

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that really step."""
        return self._session.optimizers

    @property
    def structures(self) -> StructureMap:
        """What is pruned, and what is left alone and why."""
        return self._session.structures

    @property
    def cost(self) -> CostModel:
        """Costs of the model as functions of the widths that stay."""
        return self._session.cost

    @property
    def lifecycle(self) -> LifecycleState:
        """Where every structure stands (tensors of shape ``(S,)``)."""
        return self._session.lifecycle

    @property
    def steps(self) -> int:
        """Optimizer steps followed."""
        return self._session.steps

    @property
    def waited(self) -> int:
        """Steps that did not count because a gradient was not finite."""
        return self._session.ledger.waited

    @property
    def events(self) -> list[Event]:
        """What happened, in order."""
        return self._session.events

    @property
    def finished(self) -> bool:
        """Whether the target is met and nothing decays any more."""
        return self._session.finished

    @property
    def report(self) -> CompactionReport | None:
        """What :meth:`compact` removed; None before."""
        return self._session.report

    @property
    def on_event(self) -> Callable[[Event], object] | None:
        """A function that is told of every decay, release and prune, after the step that made it.

        Set it to hear of them: ``pruner.on_event = print``. What it raises ends the step that is
        already made; nothing is lost.
        """
        return self._session.ledger.on_event

    @on_event.setter
    def on_event(self, listener: Callable[[Event], object] | None) -> None:
        self._session.ledger.on_event = listener

    def log(self) -> dict[str, float]:
        """Where pruning stands, as numbers that any logger takes.

        Returns:
            ``macs_left``: share of the MACs, commitments counted; ``decaying`` and ``pruned``:
            structures that are so now; ``released``: how many releases there were;
            ``strongest_resistance``: the largest ``C_rate`` of a decaying structure, in [-1, 1];
            0 where nothing decays.
        """
        state = self.lifecycle
        rates = c_rate(state.statistics.at(state.decaying))
        return {
            "macs_left": self.remaining()["macs"],
            "decaying": float(state.decaying.numel()),
            "pruned": float(state.pruned.sum()),
            "released": float(sum(event.kind == "release" for event in self.events)),
            "strongest_resistance": float(rates.max()) if rates.numel() else 0.0,
        }

    def __repr__(self) -> str:
        """What it is doing."""
        found = self.log()
        doing = f"step {self.steps:,}, {found['macs_left']:.1%} of the MACs left"
        if self._session.report is not None:
            doing += ", compacted"
        elif self.finished:
            doing += ", finished: compact() is next"
        counts = ", ".join(f"{found[k]:.0f} {k}" for k in ("decaying", "pruned", "released"))
        return f"<{type(self).__name__}: {doing}; {counts}>"

    def remaining(self) -> dict[str, float]:
        """What remains, commitments counted, as fractions: MACs, parameters, structures."""
        return self._session.cost.fractions(self._session.kept(), self._costs())

    # ---------------------------------------------------------------- what a loop calls

    def observe(self) -> None:
        """Read gradients now, before clipping or a sparsity term changes them.

        Optional; call it after ``backward()`` (and ``scaler.unscale_()``), before anything edits
        ``.grad``. Without it the gradients are read when the optimizer steps.

        Raises:
            RuntimeError: There are no gradients.
        """
        self._session.observe()

    def compact(self, *, tolerance: float | None = None, copies: Copies = ()) -> CompactionReport:
        """Remove the pruned structures from the model, in place, once the host has finished.

        Parameters keep their identity and optimizer state is sliced along, so training simply
        goes on. The outputs on the example inputs are compared before and after.

        Args:
            tolerance: Largest error relative to the largest output; None for the dtype's default.
            copies: Copies of the model with weights of their own (moving averages, wrapped as
                ``AveragedModel`` or bare), zeroed and cut at the same structures.

        Raises:
            RuntimeError: The host has not finished, a living DistributedDataParallel wraps the
                model, or copies come after it was cut.
            ValueError: A copy is none; nothing was cut.
            CompactionError: Outputs would change; the model and its copies were left uncut.
        """
        if self._session.report is None:  # closed before, it has given them back
            self._session.decayer.weights.zero_frozen_(self.lifecycle.pruned.cpu())
        return self._session.compact(self._cut, tolerance, copies, self._outlook())

    def close(self) -> None:
        """Let go of the model and the optimizer: hooks are removed, another pruner may start.

        Before the cut, frozen parameters get back the values that they had before any decay:
        nothing would train them.
        """
        if self._session.report is None:
            self._session.decayer.weights.give_back_(self.lifecycle.committed.cpu())
        self._close_own()
        self._session.close()

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, strings and numbers.

        It loads with ``torch.load(..., weights_only=True)``. Save it together with the model and
        the optimizer, after a step.
        """
        shared = self._session.state_dict(type(self).__name__, self._settings())
        if self._session.report is None:
            shared |= self._session.decayer.weights.frozen.state_dict()
        return shared | self._own_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, bit for bit, or change nothing.

        Raises:
            ValueError: It belongs to another model, other settings, or another version, or is
                damaged.
        """
        before = self.state_dict()
        resume.check(state_dict, before)
        resume.take_up(self._restore, state_dict, before)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"A {type(self).__name__} watches one model and one optimizer, and cannot be copied "
            "or pickled. Save its state_dict() beside the model's and the optimizer's; to go "
            "on, build it anew and load them."
        )

    # ---------------------------------------------------------------- what a method adds

    def _costs(self) -> list[str]:
        """Which costs :meth:`remaining` tells."""
        return ["macs", "params", "structures"]

    def _outlook(self) -> str:
        """What the host waits for, appended to the refusal of an early :meth:`compact`."""
        return ""

    def _cut(self, tolerance: float | None, copies: Copies) -> CompactionReport:
        """Remove what is pruned; raise and leave everything as it was if that is impossible."""
        return self._session.cut(tolerance, copies)

    def _settings(self) -> dict[str, Any]:
        """What a state can be resumed under, plain values by name."""
        return {}

    def _own_state(self) -> dict[str, Any]:
        """What changes and is not the session's."""
        return {}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`_own_state` described, after the session has taken up its part."""

    def _close_own(self) -> None:
        """Let go of what is not the session's."""

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._session.restore(state)
        self._load_own(state)

    def _for_trial(self) -> nn.Module:
        """The model as it will be when it is cut: a twin of it is cut on trial."""
        return self.model

    def _before_step(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        """An optimizer is about to step; ``first`` of several."""
        self._session.remember(optimizer, first=first)

    def _follow(self) -> None:
        """All optimizers have stepped."""
        self._session.follow()


class BesideOptimizer(Host):
    """A host that lives beside the user's optimizer: :meth:`step` follows its steps."""

    def step(self) -> None:
        """Follow one optimizer step: release, select, shrink, zero.

        Call it after ``optimizer.step()`` and before ``optimizer.zero_grad()``. Where the
        optimizer did not step since the last call (accumulation, a step that GradScaler skipped)
        nothing happens. After :meth:`compact` it does nothing.

        Raises:
            RuntimeError: The host is attached, gradients are gone, or the model was changed.
        """
        session = self._session
        if session.report is not None:
            return
        if session.attached:
            raise RuntimeError(
                f"This {session.name} is attached to the optimizer and steps by itself: remove the "
                f"call of {session.name}.step(), or call {session.name}.detach() first."
            )
        if session.taken():
            self._follow()

    def attach(self) -> None:
        """Step by itself after every optimizer step from now on; :meth:`step` is not called."""
        self._session.attached = True

    def detach(self) -> None:
        """Undo :meth:`attach`: the loop calls :meth:`step` again."""
        self._session.attached = False
