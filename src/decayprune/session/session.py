"""What every pruning method does around a training loop, once.

A :class:`Session` finds the structures of a model, owns it while it is pruned, knows when an
optimizer really stepped, has a :class:`~decayprune.method.decayer.Decayer` do what follows a step,
counts and collects what happened, and cuts at the end. Which structures leave is the choice of a
:class:`~decayprune.method.selector.Selector` that is handed to :meth:`Session.begin`; what a user
meets is a :class:`~decayprune.session.host.Host`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from decayprune.cost import CostModel
from decayprune.method.decay import Curve, linear
from decayprune.method.decayer import Decayer
from decayprune.method.lifecycle import Event, LifecycleState
from decayprune.method.moves import Moves
from decayprune.method.rectify import Rectify, Verdict
from decayprune.method.selector import Selector
from decayprune.session import arguments, resume
from decayprune.session.agreement import Agreement
from decayprune.session.capture import refuse_capture
from decayprune.session.follower import Follower
from decayprune.session.integrity import Anatomy, check_free, claim, give_up
from decayprune.session.ledger import Ledger
from decayprune.session.step_watch import StepWatch, grad_scale
from decayprune.session.vigil import Vigil
from decayprune.structures import sums
from decayprune.structures.example import ExampleInputs
from decayprune.structures.structure_map import Role, StructureMap
from decayprune.structures.tracing.trace import trace
from decayprune.surgery.compact import CompactionReport, compact
from decayprune.surgery.copies import Copies, refuse_late
from decayprune.surgery.trial import refuse_uncuttable
from decayprune.surgery.undo import Undo
from decayprune.surgery.verified import check_state, try_chosen


class Session:
    """A model under pruning, its optimizers, and everything that is the same for all methods.

    Args:
        model: The bare module, trained in place.
        optimizer: Holds the parameters to prune; several as a list; wrappers are taken off.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        ignored_layers: Names, globs or modules whose output widths are left alone.
        refine: What the method makes of the structures found: groups it leaves alone, carriers.
        roles: Slices that the method itself brings to zero.
        name: What the user calls the host in a loop, for messages.

    Attributes:
        model: The model.
        optimizers: The optimizers that really step.
        dense: The structures that were found.
        structures: Those that are in the model now (a method may cut some of them early).
        parameters: The parameters that the method moves, by name.
        cost: What remains costs, as a function of the widths that stay.
        ledger: What was counted and what happened.
        report: What :meth:`compact` removed; None before.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The model is wrapped, nothing can be pruned, or an optimizer does not fit.
        RuntimeError: Another pruner works on this model.
    """

    selector: Selector
    decayer: Decayer

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        example_inputs: ExampleInputs,
        *,
        ignored_layers: Iterable[str | nn.Module] = (),
        refine: Callable[[StructureMap], StructureMap] = lambda found: found,
        roles: Collection[Role] = sums.WEIGHTS,
        name: str = "host",
    ) -> None:
        check_free(model)
        self.model, self.optimizers = model, arguments.as_optimizers(optimizer)
        structures = refine(trace(model, example_inputs, ignored_layers))
        structures = refuse_uncuttable(model, structures, example_inputs, roles)
        arguments.check_prunable(structures)
        self.dense = self.structures = structures
        self.roles, self.example_inputs, self.name = roles, example_inputs, name
        held = {item.name for item in self.held().slices}
        named = dict(model.named_parameters())
        self.parameters = {n: parameter for n, parameter in named.items() if n in held}
        arguments.check_held(self.parameters, self.optimizers)
        arguments.check_one_device(self.parameters)
        self.cost = CostModel(structures, {n: p.shape for n, p in named.items()})
        self.report: CompactionReport | None = None
        self.attached = False
        self._watch: StepWatch | None = None

    def held(self) -> StructureMap:
        """The structures with those slices only that the method itself brings to zero."""
        if self.roles == sums.WEIGHTS:
            return self.structures
        own = tuple(item for item in self.structures.slices if item.role in self.roles)
        return replace(self.structures, slices=own)

    def begin(
        self,
        host: Follower,
        selector: Selector,
        *,
        decay_steps: int,
        last_release: int,
        rectify: Rectify | None = None,
        verdict: Verdict | None = None,
        curve: Curve = linear,
        slices: Literal["carriers", "all"] = "carriers",
        hold: bool = True,
        pin: bool = False,
        pin_carriers: bool = False,
        reads_gradients: bool = False,
        watch: bool = True,
    ) -> None:
        """Take hold of the model; to be called last, when nothing can be refused any more.

        Args:
            host: What the user meets; it is not kept alive.
            selector: Who says which structures leave.
            decay_steps: ``N``.
            last_release: Step from which nothing is released.
            rectify: When a decaying structure is released; None never releases.
            verdict: Says who is released; None: the rule of ``rectify``.
            curve: Norm over the decay.
            slices: Shrink the carriers of a structure or all its slices.
            hold: Hold norms to the schedule.
            pin: Zero pruned structures again after each step.
            pin_carriers: Zero the carriers of pruned structures again after each step.
            reads_gradients: The selector needs gradients, too.
            watch: Follow the optimizers by their hooks; False for a host that is the optimizer.
        """
        arguments.check_slices(slices)
        self.selector, self.rectify = selector, rectify
        # Where nothing decays for longer than a step there is nothing to release.
        self._needs_gradients = reads_gradients or (rectify is not None and decay_steps > 1)
        self._new_decayer = partial(
            Decayer,
            optimizers=self.optimizers,
            curve=curve,
            decay_steps=decay_steps,
            slices=slices,
            rectify=rectify,
            verdict=verdict,
            last_release=last_release,
            hold=hold,
            pin=pin,
            pin_carriers=pin_carriers,
        )
        self._host = weakref.ref(host)
        self.ledger = Ledger(Agreement(self.model, self.name))
        self._settle()
        self._tried = False
        self.vigil = Vigil(self.name, self.model, self.parameters, self.optimizers, called=watch)
        if watch:
            self._watch = StepWatch(self.optimizers, self._before_step, self._after_step)
        claim(self.model, self)

    def _settle(self) -> None:
        """A decayer for the structures that there are now."""
        self.decayer = self._new_decayer(self.held(), self.parameters)
        self.ledger.late = self.decayer.late
        self.anatomy = Anatomy(self.model, self.parameters)

    def narrow(self, structures: StructureMap) -> None:
        """Go on with a model that has lost some structures; those left keep their numbers.

        Args:
            structures: Those left.
        """
        self.ledger.settle()  # the decayer that knows of the last step is about to go
        state, self.structures = self.lifecycle, structures
        pinned = self.decayer.pinning.state_dict()
        self._settle()
        self.decayer.load(state)
        self.decayer.pinning.load_state_dict(pinned)

    # ---------------------------------------------------------------- where things stand

    @property
    def steps(self) -> int:
        """Optimizer steps followed."""
        return self.ledger.steps

    @property
    def events(self) -> list[Event]:
        """What happened, in order."""
        return self.ledger.events

    @property
    def lifecycle(self) -> LifecycleState:
        """Where every structure stands (tensors of shape ``(S,)``)."""
        return self.decayer.state

    @property
    def finished(self) -> bool:
        """Whether the target is met and nothing decays any more."""
        done = self.selector.done(self.lifecycle, self.steps)
        return done and not self.lifecycle.decaying.numel()

    def kept(self) -> torch.Tensor:
        """Structures left in each group, commitments counted, shape ``(G,)``."""
        return self.cost.keep_counts(self.lifecycle.committed.cpu())

    # ---------------------------------------------------------------- beside a loop

    def taken(self) -> bool:
        """Whether the optimizers have stepped since the last call that said so.

        Raises:
            RuntimeError: The weights move, and the optimizers do not.
        """
        if self._watch is None:
            return False
        taken = self._watch.taken()
        if not taken:
            self.vigil.suspect(called=self._watch.called())
        return taken

    def _before_step(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        host = self._host()
        if host is not None and self.report is None:
            host._before_step(optimizer, first)

    def _after_step(self) -> None:
        self.vigil.stepped()
        host = self._host()
        if self.attached and host is not None and self.report is None and self.taken():
            host._follow()

    def remember(
        self, optimizer: torch.optim.Optimizer | None = None, *, first: bool = True
    ) -> None:
        """Read what a step starts from.

        Args:
            optimizer: Who is about to step; None for all.
            first: None of them has stepped yet.
        """
        refuse_capture(self.decayer.weights.device, self.name)
        scale = 1.0 if optimizer is None else grad_scale(optimizer)
        try:
            self.decayer.remember(optimizer, first=first, grad_scale=scale)
        except (IndexError, RuntimeError):
            self.anatomy.check()  # says which part was changed, if that is why
            raise

    def observe(self) -> None:
        """Read the resistance from the gradients as they are now, if anybody wants to know it."""
        if self.report is None and self.rectify is not None and self.has_gradients("observe"):
            stepped = () if self._watch is None else self._watch.stepped()
            self.decayer.observe(stepped=stepped)

    def follow(self) -> list[Moves] | None:
        """Do what follows one optimizer step.

        Returns:
            What happened; None if the step does not count, because something was not finite.

        Raises:
            RuntimeError: The model was changed by others, gradients are gone, or a graph captures.
        """
        refuse_capture(self.decayer.weights.device, self.name)
        self.anatomy.check()
        self.vigil.check_gradients(needed=self._needs_gradients, over=lambda: self.finished)
        undo = Undo()  # the decayer puts its own state back
        undo.keep(self.selector)
        try:
            moves = self.decayer.step(self.steps + 1, self.selector)
        except BaseException:
            undo.run()
            raise
        self.vigil.followed()
        if moves is None:
            self.ledger.wait()
            return None
        self.ledger.note(moves)
        if self.ledger.last == 1:  # before it, optimizers have no state
            check_state(self.model, self.structures, self.optimizers)
        if moves and not self._tried and self.selector.done(self.lifecycle, self.steps):
            self._try_cut()
        self.ledger.tell(moves)
        return moves

    def _try_cut(self) -> None:
        """Try the very cut that was chosen, as soon as it is, and not after the decay."""
        self._tried = True
        host, gone = self._host(), self.lifecycle.committed.cpu()
        model = self.model if host is None else host._for_trial()
        try_chosen(model, self.structures, gone, self.example_inputs, self.roles, self.steps)

    def has_gradients(self, caller: str) -> bool:
        """Whether there are gradients; an error without them, unless all is done."""
        return self.vigil.has_gradients(caller, lambda: self.finished)

    # ---------------------------------------------------------------- the end

    def compact(
        self,
        cut: Callable[[float | None, Copies], CompactionReport],
        tolerance: float | None,
        copies: Copies,
        outlook: str,
    ) -> CompactionReport:
        """Cut once, when all is done, and let go of the model.

        Args:
            cut: Removes what is pruned, or raises and leaves everything as it was.
            tolerance: Passed on.
            copies: Passed on.
            outlook: What the host waits for, in words.

        Raises:
            RuntimeError: Not all is done, or copies come after the cut.
        """
        if self.report is not None:
            refuse_late(copies)
            return self.report
        if not self.finished:
            share = self.cost.fractions(self.kept(), ["macs"])["macs"]
            raise RuntimeError(
                f"compact() before the {self.name} has finished: {self.lifecycle.decaying.numel()} "
                f"structures still decay at step {self.steps}, and without them {share:.1%} of the "
                f"MACs remain{outlook}. Train until {self.name}.finished is True."
            )
        self.anatomy.check()
        self.report = cut(tolerance, copies)
        self.close()
        return self.report

    def cut(self, tolerance: float | None, copies: Copies) -> CompactionReport:
        """Remove every pruned structure from the model, in place."""
        return compact(
            self.model,
            self.structures,
            self.lifecycle.pruned,
            example_inputs=self.example_inputs,
            optimizers=self.optimizers,
            copies=copies,
            tolerance=tolerance,
            roles=self.roles,
        )

    def close(self) -> None:
        """Let go of the model and the optimizers: hooks are removed, another pruner may start."""
        if self._watch is not None:
            self._watch.close()
        give_up(self.model, self)

    # ---------------------------------------------------------------- save and resume

    def state_dict(self, owner: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What all hosts save, as tensors, strings and numbers.

        Args:
            owner: Kind of the host.
            settings: What a state can be resumed under, plain values by name.
        """
        return {
            **resume.header(owner, self.dense, settings),
            **self.ledger.state_dict(),
            "state": self.lifecycle.state_dict(),
            **self.decayer.pinning.state_dict(),
            **({} if self.report is None else {"report": resume.told(self.report)}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` described.

        Args:
            state: Checked by :func:`resume.check`.

        Raises:
            ValueError: The lifecycle is that of other structures.
        """
        self.decayer.load(LifecycleState.from_state_dict(state["state"], like=self.lifecycle))
        self.decayer.weights.frozen.load_state_dict(state)
        self.decayer.pinning.load_state_dict(state)
        self.ledger.load_state_dict(state)
        if self._watch is not None:
            self._watch.forget()
        self.vigil.followed()
        if "report" in state:  # of after the cut: nothing is left to do
            self.report = resume.retold(state["report"])
            self.close()
