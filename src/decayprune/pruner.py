"""The pruner a user meets: three lines in any training loop.

:class:`DecayPruner` finds the structures of a model, decides at each round of its schedule which
of them leave, and lets a :class:`~decayprune.method.decayer.Decayer` shrink them after every
optimizer step. It checks the order of calls, saves and resumes, and hands over to the knife at the
end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from decayprune.cost import Budget, CostModel
from decayprune.latency.estimate import LatencyModel
from decayprune.method.decay import Curve
from decayprune.method.decayer import Decayer
from decayprune.method.lifecycle import Event, LifecycleState
from decayprune.method.rectify import Rectify
from decayprune.selection.by_importance import ImportanceSelector, Scope
from decayprune.selection.importance import Importance
from decayprune.selection.schedule import Schedule
from decayprune.session import arguments, resume
from decayprune.session.step_watch import StepWatch
from decayprune.structures.example import ExampleInputs
from decayprune.structures.tracing.trace import trace
from decayprune.surgery.compact import CompactionReport, compact
from decayprune.surgery.copies import refuse_late
from decayprune.surgery.cut import refuse_uncuttable

_ORDER = "loss.backward(); optimizer.step(); pruner.step(); optimizer.zero_grad()"


class DecayPruner:
    """Prunes a model smoothly while it trains.

    Example:
        ```python
        pruner = DecayPruner(model, optimizer, inputs, budget=Budget(macs=0.5),
                             schedule=Schedule.for_run(total_steps))
        for inputs, targets in loader:
            criterion(model(inputs), targets).backward()
            optimizer.step(); pruner.step(); optimizer.zero_grad()
        report = pruner.compact()
        ```

    Args:
        model: Trained in place. Build the pruner from the bare module, before it is wrapped or
            compiled.
        optimizer: Holds the model's parameters; several optimizers as a list.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments for one
            forward pass.
        budget: Upper bounds on what remains.
        schedule: When structures are selected and how long they decay.
        rectify: When a decaying structure is released; None for smooth pruning alone.
        importance: ``"magnitude"``, ``"magnitude_l1"``, ``"taylor"``, ``"bn_scale"``,
            ``"random"``, or a function ``(structures, parameters) -> scores``.
        ignored_layers: Names, globs or modules whose output widths are left alone.
        round_to: Make every pruned width a multiple of it.
        scope: What stays of a group falls with its width (``"width"``); or structures are compared
            over the model (``"global"``), within their group (``"local"``), or within groups of
            the same kind (``"isomorphic"``).
        slices: Shrink the ``"carriers"`` of a structure, or ``"all"`` its slices along with them.
        decay: ``"linear"``, ``"cosine"``, or a function of progress.
        floor: Share of every width that stays in any case.

    Raises:
        ValueError: Nothing can be pruned, the budget cannot be reached, a name matches nothing,
            the optimizer does not hold the parameters, or an argument is out of range.
        RuntimeError: Another pruner works on this model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        example_inputs: ExampleInputs,
        *,
        budget: Budget,
        schedule: Schedule,
        rectify: Rectify | None = Rectify(),  # noqa: B008 - frozen
        importance: str | Importance = "magnitude",
        ignored_layers: Iterable[str | nn.Module] = (),
        round_to: int | None = None,
        scope: Scope = "width",
        slices: Literal["carriers", "all"] = "carriers",
        decay: str | Curve = "linear",
        floor: float = 0.1,
    ) -> None:
        arguments.check_free(model)
        arguments.check_kind("budget", budget, Budget, "dp.Budget(macs=0.5)")
        arguments.check_kind("schedule", schedule, Schedule, "dp.Schedule.for_run(total_steps)")
        if rectify is not None:
            arguments.check_kind("rectify", rectify, Rectify, "dp.Rectify(), or None")
        self.optimizers = arguments.as_optimizers(optimizer)
        structures = trace(model, example_inputs, ignored_layers)
        structures = refuse_uncuttable(model, structures, example_inputs)
        arguments.check_prunable(structures)
        self.model, self.structures, self.schedule = model, structures, schedule
        self._example_inputs = example_inputs
        names = {item.name for item in structures.slices}
        self._parameters = {
            name: parameter for name, parameter in model.named_parameters() if name in names
        }
        arguments.check_held(self._parameters, self.optimizers)
        arguments.check_slices(slices)
        self._anatomy = arguments.Anatomy(model, self._parameters)

        self._importance, self._seed = importance, arguments.shared_seed(importance)
        shapes = {n: p.shape for n, p in model.named_parameters()}
        self._latency = None
        if budget.latency is not None:
            self._latency = LatencyModel(model, structures, example_inputs)
        self.cost = CostModel(structures, shapes, self._latency)
        self._selector = ImportanceSelector(
            structures,
            self.cost,
            budget,
            schedule,
            arguments.as_importance(importance, self._seed),
            scope=scope,
            round_to=round_to,
            floor=floor,
            rectify=rectify,
        )
        self._decayer = Decayer(
            structures,
            self._parameters,
            self.optimizers,
            curve=arguments.as_curve(decay),
            decay_steps=schedule.decay_steps,
            slices=slices,
            rectify=rectify,
            last_release=schedule.stop,
        )
        self._needs_gradients = rectify is not None or self._selector.reads_gradients
        self.budget, self.rectify = budget, rectify
        self._options = {
            "importance": importance if isinstance(importance, str) else "a function",
            "round_to": round_to,
            "scope": scope,
            "slices": slices,
            "decay": decay if isinstance(decay, str) else "a function",
            "floor": floor,
        }
        self.steps = 0
        self.waited = 0
        self.events: list[Event] = []
        self._attached = False
        self._report: CompactionReport | None = None
        self._watch = StepWatch(self.optimizers, self._before_step, self._after_step)
        arguments.claim(model, self)

    # ---------------------------------------------------------------- what a user reads

    @property
    def state(self) -> LifecycleState:
        """Where every structure stands (tensors of shape ``(S,)``)."""
        return self._decayer.state

    @property
    def finished(self) -> bool:
        """Whether the budget is met and nothing decays any more."""
        return not self.state.decaying.numel() and self._selector.done(self.state, self.steps)

    def remaining(self) -> dict[str, float]:
        """What remains, commitments counted, as fractions: MACs, parameters, structures, latency.

        Latency only under a latency budget, as estimated from the table.
        """
        kept = self.cost.keep_counts(self.state.committed.cpu())
        timed = [] if self._latency is None else ["latency"]
        return self.cost.fractions(kept, ["macs", "params", "structures", *timed])

    # ---------------------------------------------------------------- what a loop calls

    def step(self) -> None:
        """Follow one optimizer step: release, select, shrink, zero.

        Call it after ``optimizer.step()`` and before ``optimizer.zero_grad()``. Where the
        optimizer did not step since the last call (accumulation, a step that GradScaler skipped)
        nothing happens. After :meth:`compact` it does nothing.

        Raises:
            RuntimeError: The pruner is attached, gradients are gone, or the model was changed.
        """
        if self._report is not None:
            return
        if self._attached:
            raise RuntimeError(
                "This pruner is attached to the optimizer and steps by itself: remove the call "
                "of pruner.step(), or call pruner.detach() first."
            )
        if self._watch.taken():
            self._follow()

    def observe(self) -> None:
        """Read gradients now, before clipping or a sparsity term changes them.

        Optional; call it after ``backward()`` (and ``scaler.unscale_()``), before anything edits
        ``.grad``. Without it the gradients are read in :meth:`step`.

        Raises:
            RuntimeError: There are no gradients.
        """
        if self._report is not None or self.rectify is None:
            return
        arguments.check_gradients(self.model.parameters(), "pruner.observe()", _ORDER)
        self._decayer.observe()

    def attach(self) -> None:
        """Step by itself after every optimizer step from now on; :meth:`step` is not called."""
        self._attached = True

    def detach(self) -> None:
        """Undo :meth:`attach`: the loop calls :meth:`step` again."""
        self._attached = False

    def compact(
        self,
        *,
        tolerance: float | None = None,
        copies: nn.Module | Sequence[nn.Module] = (),
    ) -> CompactionReport:
        """Remove the pruned structures from the model, in place, once the pruner has finished.

        Parameters keep their identity and optimizer state is sliced along, so training simply
        goes on. The outputs on the example inputs are compared before and after.

        Args:
            tolerance: Largest error relative to the largest output; None for the dtype's default.
            copies: Copies of the model with weights of their own (moving averages, wrapped as
                ``AveragedModel`` or bare), zeroed and cut at the same structures.

        Raises:
            RuntimeError: Structures still decay, rounds are still to come, a living
                DistributedDataParallel wraps the model, or it is compact already.
            ValueError: A copy is none; nothing was cut.
            CompactionError: Outputs would change; the model and its copies were left uncut.
        """
        if self._report is not None:
            refuse_late(copies)
            return self._report
        if not self.finished:
            raise RuntimeError(
                f"compact() before the pruner has finished: {self.state.decaying.numel()} "
                f"structures still decay at step {self.steps} (the schedule stops at "
                f"{self.schedule.stop} and decays last {self.schedule.decay_steps} steps). Train "
                "until pruner.finished is True."
            )
        self._anatomy.check()
        self._report = compact(
            self.model,
            self.structures,
            self.state.pruned,
            example_inputs=self._example_inputs,
            optimizers=self.optimizers,
            copies=copies,
            tolerance=tolerance,
        )
        self.close()
        return self._report

    def close(self) -> None:
        """Let go of the model and the optimizer: hooks are removed, another pruner may start."""
        self._watch.close()
        arguments.give_up(self.model, self)

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, strings and numbers.

        It loads with ``torch.load(..., weights_only=True)``. Save it together with the model and
        the optimizer, after :meth:`step`.
        """
        # What was measured goes along: another day's table would decide otherwise.
        measured = {} if self._latency is None else {"latency": self._latency.table}
        return measured | {
            **resume.saved(self, self.structures, self.state, self._settings()),
            "seed": self._seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, bit for bit.

        Raises:
            ValueError: It belongs to another model, other settings, or another version.
        """
        resume.check(state, self.state_dict())
        self._decayer.load(resume.go_on(self, state, self.state))
        if self._latency is not None:
            self._latency.table = state["latency"]
        self._seed = int(state["seed"])
        self._selector.importance = arguments.as_importance(self._importance, self._seed)
        self._watch.forget()

    def _settings(self) -> dict[str, Any]:
        parts = {"schedule": self.schedule, "budget": self.budget, "rectify": self.rectify}
        return resume.flat(**parts) | self._options

    # ---------------------------------------------------------------- inside

    def _before_step(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        try:
            self._decayer.remember(optimizer)
        except (IndexError, RuntimeError):
            self._anatomy.check()  # says which part was changed, if that is why
            raise

    def _after_step(self) -> None:
        if self._attached:
            self._watch.forget()
            self._follow()

    def _follow(self) -> None:
        self._anatomy.check()
        if self._needs_gradients:
            arguments.check_gradients(self.model.parameters(), "pruner.step()", _ORDER)
        resume.follow(self, self._decayer.step(self.steps + 1, self._selector))
