"""The pruner a user meets: three lines in any training loop.

:class:`DecayPruner` is our own host: structures are ranked by an importance, and at each round of a
schedule the lowest of them leave, as many as the budget needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from decayprune.compensation.batches import inputs_from
from decayprune.compensation.calibrated import Calibrated
from decayprune.compensation.kept import KeptBatches
from decayprune.compensation.learned import Learned
from decayprune.compensation.training import TrainingBatches
from decayprune.cost import Budget
from decayprune.deploy.target import form_of, hardware_of
from decayprune.latency.estimate import LatencyModel
from decayprune.latency.hardware import Hardware, checked_units, units
from decayprune.method.decay import Curve
from decayprune.method.lifecycle import Event
from decayprune.method.rectify import Rectify
from decayprune.selection.by_importance import ImportanceSelector, Scope
from decayprune.selection.importance import Importance
from decayprune.selection.schedule import Schedule
from decayprune.session import arguments, resume
from decayprune.session.host import BesideOptimizer
from decayprune.session.recording import Graph, Recording
from decayprune.session.session import Session
from decayprune.structures.example import ExampleInputs
from decayprune.structures.ranks import shared
from decayprune.structures.streams import residual_streams
from decayprune.structures.structure_map import StructureMap
from decayprune.surgery.branches import branch_effects, deepened


class DecayPruner(BesideOptimizer):
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
        budget: Upper bounds on what remains. Residual branches leave only if it bounds ``depth``.
        schedule: When structures are selected and how long they decay.
        rectify: When a decaying structure is released; None for smooth pruning alone.
        importance: ``"magnitude"``, ``"magnitude_l1"``, ``"taylor"``, ``"bn_scale"``,
            ``"random"``, ``"sensitivity"``, ``"variance"``, or a function ``(structures,
            parameters) -> scores``. None: ``"sensitivity"`` if there is something to calibrate on,
            else ``"magnitude"``.
        calibrate: Your training loader, of which 16 batches are read at once, or batches like
            ``example_inputs``, at most 64; labels are left out. At every round that begins later
            the model is run on them again. Or a number: the inputs of so many last forward passes
            in training before each round, on which the model is run then. Structures are
            ranked by how much the outputs change without them, and their consumers take over what
            is picked by ridge regression (:mod:`decayprune.compensation`). For a trained model.
        ignored_layers: Names, globs or modules whose output widths are left alone.
        round_to: None: any width, unless ``target`` is named. ``"auto"``: widths it is fast at,
            for a tenth or two of a point of accuracy on narrow networks
            (``benchmarks/rounding.py``). A number: every pruned width is a multiple of it.
        target: Where the model will run, for widths that are fast there: ``"cpu"``, ``"cuda"``,
            ``"onnxruntime"``, ``"compiled"``, or a ``dp.Hardware``. None: where its parameters are
            now. A budget of ``latency`` is measured in onnxruntime or compiled, if that is how.
        scope: What stays of a group falls with its width (``"width"``); or structures are compared
            over the model (``"global"``), within their group (``"local"``), or within groups of
            the same kind (``"isomorphic"``).
        slices: Shrink the ``"carriers"`` of a structure, or ``"all"`` its slices along with them.
        decay: ``"linear"``, ``"cosine"``, or a function of progress.
        floor: Share of every width that stays in any case.
        residual_width: Whether the width of a transformer's residual stream, which all its blocks
            share, is pruned like others. None: only if the budget cannot be met with heads and
            inner widths alone.
        pin: Zero pruned structures again after every step. Where training revives them by itself
            (a sigmoid, noise on the weights) that happens anyway, once it was noticed.
        on_event: Told of every decay, release and prune, after the step that made it.

    Raises:
        ValueError: Nothing can be pruned, the budget cannot be reached, a name matches nothing,
            the optimizer does not hold the parameters, or an argument is out of range.
        RuntimeError: Another pruner works on this model.
        ExportError: A latency was to be measured in onnxruntime, and the model cannot go there.
        ModuleNotFoundError: The same, and a package is missing.
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
        importance: str | Importance | None = None,
        calibrate: Iterable[Any] | int | None = None,
        ignored_layers: Iterable[str | nn.Module] = (),
        round_to: int | Literal["auto"] | None = None,
        target: str | Hardware | None = None,
        scope: Scope = "width",
        slices: Literal["carriers", "all"] = "carriers",
        decay: str | Curve = "linear",
        floor: float = 0.1,
        residual_width: bool | None = None,
        pin: bool = False,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        arguments.check_plan(budget, schedule, rectify)
        arguments.check_slices(slices)
        round_to = arguments.as_round_to(round_to, target, timed=budget.latency is not None)
        curve = arguments.as_curve(decay)
        if not isinstance(ignored_layers, (str, nn.Module)):
            ignored_layers = tuple(ignored_layers)  # read twice
        refine = partial(_refined, model, residual_width)
        if budget.depth is not None:
            refine = partial(deepened, model, example_inputs, ignored_layers, refine)
        self._session = Session(
            model,
            optimizer,
            example_inputs,
            ignored_layers=ignored_layers,
            refine=refine,
            name="pruner",
        )
        self.budget, self.schedule, self.rectify = budget, schedule, rectify
        self._units = self._fast_units(target) if isinstance(round_to, str) else None
        self._latency = self._timed(budget, target)
        self._importance = importance or ("magnitude" if calibrate is None else "sensitivity")
        feels = self._importance == "sensitivity"
        self._learned = None if calibrate is None else Learned(model, self.structures, feels=feels)
        self._seed = arguments.shared_seed(self._importance)
        self._selector = self._chooser(
            scope=scope,
            round_to=None if isinstance(round_to, str) else round_to,
            floor=floor,
            spared=None if residual_width else residual_streams(model, self.structures),
        )
        self._calibrated = self._look_at(calibrate)
        self._options = resume.plain(
            {"calibrated": calibrate is not None or None, "residual_width": residual_width},
            importance=self._importance,
            round_to=round_to,
            scope=scope,
            slices=slices,
            decay=decay,
            floor=floor,
        )
        self._begin(curve, slices, pin=pin)
        self._recording = Recording(self._session, _quiet_steps(self._selector, self._calibrated))
        self.on_event = on_event

    # ---------------------------------------------------------------- parts of the constructor

    def _timed(self, budget: Budget, target: str | Hardware | None) -> LatencyModel | None:
        """What forward passes cost, from now on a cost like others, if the budget bounds it."""
        if budget.latency is None:
            return None
        session = self._session
        latency = LatencyModel(
            session.model,
            self.structures,
            session.example_inputs,
            self.cost,
            form=form_of(target, self._device()),
        )
        session.cost = self.cost.timed_by(latency)
        return latency

    def _chooser(
        self,
        *,
        scope: Scope,
        round_to: int | None,
        floor: float,
        spared: torch.Tensor | None,
    ) -> ImportanceSelector:
        session, learned = self._session, self._learned
        selector = ImportanceSelector(
            self.structures,
            self.cost,
            self.budget,
            self.schedule,
            self._ranking(),
            scope=scope,
            round_to=round_to if self._units is None else self._units,
            floor=floor,
            spared=spared,
            rectify=self.rectify,
            worth=None if learned is None else lambda: learned.worth,
        )
        if self._latency is not None:  # measured again near the widths that will be chosen
            self._latency.refine(partial(selector.preview, session.parameters))
            selector.check_reachable()
        return selector

    def _look_at(self, calibrate: Iterable[Any] | int | None) -> Calibrated | None:
        """Learn from data, or keep that of the training to learn from it later."""
        if calibrate is None or self._learned is None:
            return None
        session, schedule = self._session, self.schedule
        rounds = {schedule.begins(number) for number in range(schedule.rounds)}
        watching: KeptBatches | None = None

        def step() -> int:
            return session.ledger.last + 1

        if isinstance(calibrate, int):
            number = arguments.as_number_of_batches(calibrate, min(rounds))
            example = session.example_inputs
            watching = TrainingBatches(session.model, number, example, rounds=rounds, step=step)
        else:
            batches = inputs_from(calibrate, session.example_inputs)
            self._learn(batches)  # now in any case: what it refuses is refused before training
            if later := rounds - {1}:
                watching = KeptBatches(batches, rounds=later, step=step)
        return Calibrated(self._selector, self._learned, self._learn, watching)

    def _learn(self, batches: Sequence[ExampleInputs]) -> None:
        assert self._learned is not None
        self._learned.learn(batches)
        if self.structures.branches:
            model = self._session.model
            self._learned.worth = branch_effects(model, self.structures, batches)

    def _fast_units(self, target: str | Hardware | None) -> tuple[int, ...]:
        """Multiples that the target is fast at: in a data-parallel run those of one process."""
        hardware = hardware_of(target, self._device())
        return shared(lambda: units(hardware, self.structures))

    def _device(self) -> torch.device:
        return next(iter(self._session.parameters.values())).device

    def _begin(self, curve: Curve, slices: Literal["carriers", "all"], *, pin: bool) -> None:
        self._session.begin(
            self,
            self._selector if self._calibrated is None else self._calibrated.selector,
            curve=curve,
            decay_steps=self.schedule.decay_steps,
            slices=slices,
            rectify=self.rectify,
            last_release=self.schedule.stop,
            pin=pin,
            reads_gradients=self._selector.reads_gradients,
        )

    def _ranking(self) -> Importance:
        if self._importance not in ("sensitivity", "variance"):
            return arguments.as_importance(self._importance, self._seed)
        if self._learned is None:
            raise ValueError(
                f"importance={self._importance!r} ranks by what happens on some data, and nothing "
                "was given. Pass calibrate=loader, your training loader."
            )
        return self._learned.importance

    # ---------------------------------------------------------------- steps that a device repeats

    @property
    def replayable(self) -> bool:
        """Whether the next step can be captured, or repeated from a graph (``torch.cuda.graph``).

        It is False at steps at which structures are selected, judged or pruned, and at the first
        one after each of those; asking makes no device wait after a step from a graph.
        """
        return self._recording.ready

    def replay(self, graph: Graph) -> None:
        """Repeat a captured step, with this pruner's part in it, and count it.

        Args:
            graph: The last one captured, with ``optimizer.step()`` and :meth:`step` inside.

        Raises:
            RuntimeError: :attr:`replayable` is False, or a step was taken without the graph since
                it was captured. Nothing was repeated.
        """
        self._recording.replay(graph)

    def observe(self) -> None:
        """Read gradients now, before clipping or a sparsity term changes them.

        Optional, as for every host; in a captured step it is captured along.

        Raises:
            RuntimeError: There are no gradients.
        """
        self._recording.observe()

    # ---------------------------------------------------------------- what the session asks

    def _before_step(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        self._recording.remember(optimizer, first=first)

    def _follow(self) -> None:
        if self._recording.follow():
            return
        self._settle()  # what an interrupt has left
        if self._calibrated is not None:
            self._calibrated.follow()
        self._session.follow()
        self._settle()

    def _settle(self) -> None:
        if self._calibrated is not None and self._calibrated.selector.settle():
            self._session.vigil.followed()

    def _costs(self) -> list[str]:
        more = [] if self._latency is None else ["latency"]
        return [*super()._costs(), *more, *([] if self.budget.depth is None else ["depth"])]

    def _outlook(self) -> str:
        return (
            f" (the schedule stops at {self.schedule.stop} and decays last "
            f"{self.schedule.decay_steps} steps)"
        )

    def _settings(self) -> dict[str, Any]:
        parts = {"schedule": self.schedule, "budget": self.budget, "rectify": self.rectify}
        return resume.flat(**parts) | self._options

    def _own_state(self) -> dict[str, Any]:
        # What was measured goes along: another day's table would decide otherwise.
        state: dict[str, Any] = {"seed": self._seed}
        if self._latency is not None:
            state["latency"] = self._latency.state_dict()
        if self._units is not None:
            state["units"] = list(self._units)
        if self._calibrated is not None:
            state |= self._calibrated.state_dict()
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        # First, as they may refuse and nothing else has changed yet.
        if self._latency is not None:
            self._latency.load_state_dict(state["latency"])
        if self._units is not None:
            self._units = checked_units(state.get("units"), len(self.structures.groups))
            self._selector.set_multiples(self._units)
        if self._calibrated is not None:
            self._calibrated.load_state_dict(state)
        super()._restore(state)

    def _close_own(self) -> None:
        if self._calibrated is not None:
            self._calibrated.close()

    def _load_own(self, state: Mapping[str, Any]) -> None:
        self._seed = int(state["seed"])
        self._selector.importance = self._ranking()


def _quiet_steps(
    selector: ImportanceSelector, calibrated: Calibrated | None
) -> Callable[[int], bool]:
    """Whether at a step nothing is selected by itself, and no batch kept; it knows no pruner."""
    return lambda step: selector.pauses(step) and not (calibrated and calibrated.keeps(step))


def _refined(
    model: nn.Module, residual_width: bool | None, structures: StructureMap
) -> StructureMap:
    """The structures that may be pruned at all."""
    if residual_width is not False:
        return structures
    reason = "it is the width of the residual stream, and residual_width=False keeps that"
    numbers = residual_streams(model, structures).nonzero().flatten().tolist()
    return structures.without(dict.fromkeys(numbers, reason))
