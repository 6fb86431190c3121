"""What is compared: each arm makes, of a dense network, something to be trained for some steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import decayprune as dp
from decayprune.app.pretrained.loop import Batch, Data
from decayprune.app.pretrained.task import DENSE_STEPS, Task, dense
from decayprune.app.study.controls import RandomRelease
from decayprune.compensation.calibration import Calibration, calibrate
from decayprune.selection.importance import Importance
from decayprune.structures import StructureMap
from decayprune.structures.structure_map import Role
from decayprune.structures.sums import labelled, sum_products

CALIBRATION = 15  # batches, without their labels

EARLY = 100
"""Steps of the dense fine-tuning before what is pruned early, a schedule of its own."""


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """An arm on a seed, with a budget of MACs and a number of optimizer steps.

    Attributes:
        arm: Its name.
        seed: What everything random follows from.
        steps: After the dense fine-tuning, pruning included.
        budget: Share of the MACs that stays.
        lr: Peak learning rate.
        dense_steps: Of the dense fine-tuning.
    """

    arm: str
    seed: int
    steps: int
    budget: float
    lr: float
    dense_steps: int = DENSE_STEPS

    @property
    def name(self) -> str:
        """Of its file; the learning rate is not part of it, for there is one per arm."""
        return f"{self.arm}-{self.budget:g}-{self.steps}-s{self.seed}"


@dataclass
class Start:
    """What every arm of a seed begins with."""

    task: Task
    run: ArmRun
    data: Data

    @cached_property
    def dense(self) -> Any:
        """The fine-tuned dense network, to be pruned in place."""
        return dense(self.task, self.run.seed, self.data, self.run.dense_steps)

    def pretrained(self) -> Any:
        """What the dense network was fine-tuned from, to be pruned in place."""
        torch.manual_seed(self.run.seed)
        return self.task.pretrained()

    def teacher(self) -> Any:
        """Another copy of it, for its answers."""
        again = dense(self.task, self.run.seed, self.data, self.run.dense_steps)
        return again.eval().requires_grad_(False)

    def calibration(self) -> Iterator[Batch]:
        """Training examples in an order of their own; their labels are not read."""
        return itertools.islice(self.data["train"].forever(30_000 + self.run.seed), CALIBRATION)


@dataclass
class Subject:
    """What an arm made.

    Attributes:
        model: To be trained.
        steps: For so many steps.
        pruner_on: Builds what prunes it meanwhile.
        teacher: Whom it learns from.
        optimizer_on: Makes what trains it, of its parameters and a rate, if that is not AdamW.
    """

    model: nn.Module
    steps: int
    pruner_on: Callable[[torch.optim.Optimizer], Any] | None = None
    teacher: nn.Module | None = None
    optimizer_on: Callable[[list[nn.Parameter], float], torch.optim.Optimizer] | None = None


Arm = Callable[["Start"], "Subject"]


RECTIFY = dp.Rectify()


def prune(
    start: Start,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: dp.Schedule | None = None,
    smooth: bool = True,
    releases: bool = True,
    rectify: dp.Rectify = RECTIFY,
    depth: float | None = None,
    **options: Any,
) -> dp.DecayPruner:
    """The library's pruner, from the first step on unless a schedule says otherwise."""
    if schedule is None:
        steps = start.run.steps
        schedule = dp.Schedule.for_run(steps) if smooth else dp.Schedule.at_once()
    return dp.DecayPruner(
        model,
        optimizer,
        start.task.example(),
        budget=dp.Budget(macs=start.run.budget, depth=depth),
        schedule=schedule,
        rectify=rectify if schedule.decay_steps > 1 and releases else None,
        ignored_layers=start.task.ignored,
        **{"round_to": None, **options},
    )


def pruned(**options: Any) -> Arm:
    """The library with some options of :func:`prune`."""

    def arm(start: Start) -> Subject:
        model = start.dense
        return Subject(model, start.run.steps, lambda opt: prune(start, model, opt, **options))

    return arm


def compensated(importance: str = "variance", **options: Any) -> Arm:
    """Ranked on data, and the consumers take over what leaves."""

    def arm(start: Start) -> Subject:
        read = [inputs for inputs, _ in start.calibration()]
        return pruned(importance=importance, calibrate=read, **options)(start)

    return arm


def by_variance(
    wrap: Callable[[dp.DecayPruner, Calibration], Any] = lambda pruner, read: pruner,
    **options: Any,
) -> Arm:
    """Ranked by activation variance; nothing is taken over.

    Args:
        wrap: Makes of the pruner, and of what was read, what is stepped in its place.
        options: Of :func:`prune`.
    """

    def arm(start: Start) -> Subject:
        model = start.dense
        read = calibrated(start)

        def pruner_on(optimizer: torch.optim.Optimizer) -> Any:
            return wrap(prune(start, model, optimizer, importance=read.importance, **options), read)

        return Subject(model, start.run.steps, pruner_on)

    return arm


def calibrated(start: Start) -> Calibration:
    """What the consumers of a model read, without a pruner."""
    return calibrate(start.dense, structures(start), (x for x, _ in start.calibration()))


def structures(start: Start) -> StructureMap:
    """Of the dense network."""
    return dp.inspect(start.dense, start.task.example(), start.task.ignored).structures


def by_taylor(*, ridge: bool, **options: Any) -> Arm:
    """Ranked by what the loss of calibration batches does when a structure is scaled away."""

    def arm(start: Start) -> Subject:
        batches = list(start.calibration())
        scores = averaged_taylor(start.dense, structures(start), batches)
        read = [inputs for inputs, _ in batches] if ridge else None
        return pruned(importance=scores, calibrate=read, **options)(start)

    return arm


def averaged_taylor(
    model: nn.Module, structures: StructureMap, batches: Iterable[Batch]
) -> Importance:
    """Root of the mean square, over batches, of ``<g, w>`` of a structure's columns, as of now.

    The library's ``"taylor"``, which reads the gradients of a training step, over batches.
    """
    roles: tuple[Role, ...] = ("column",)
    columns, size = labelled(structures, roles), structures.num_structures
    weights = {item.name: model.get_parameter(item.name) for item in columns}
    total = torch.zeros(size)
    for inputs, labels in batches:
        loss = F.cross_entropy(model(**inputs), labels)
        grads = torch.autograd.grad(loss, list(weights.values()))
        total += sum_products(
            columns, size, weights, dict(zip(weights, grads, strict=True))
        ).square()
    return lambda structures, parameters: total.sqrt()


def distilled(arm: Arm) -> Arm:
    """The same arm, taught by the dense network."""

    def taught(start: Start) -> Subject:
        subject = arm(start)
        subject.teacher = start.teacher()
        return subject

    return taught


def early(arm: Arm) -> Arm:
    """The same arm after a short dense fine-tuning; what that saves goes to the small network.

    For as much compute in all as the dense fine-tuning and the steps after it; of an arm that cuts
    before or at its first step.
    """

    def sooner(start: Start) -> Subject:
        begun = min(EARLY, start.run.dense_steps)
        subject = arm(replace(start, run=replace(start.run, dense_steps=begun)))
        subject.steps += _bought(start.run, begun)
        return subject

    return sooner


def at_once(gone: int) -> dp.Schedule:
    """All of it cut at a step."""
    return dp.Schedule.at_once(start=gone)


def within(
    gone: int = EARLY, schedule: Callable[[int], dp.Schedule] = at_once, **options: Any
) -> Arm:
    """As calibrated and cut early, in one loop: one schedule of the rate, calibrated on the way.

    Args:
        gone: Step at which all has left; what the dense fine-tuning would have cost from there on
            goes to the small network. At the end of that fine-tuning if it is shorter.
        schedule: By which all has left at such a step.
        options: Of :func:`prune`.
    """

    def arm(start: Start) -> Subject:
        model, cut = start.pretrained(), min(gone, start.run.dense_steps)

        def pruner_on(optimizer: torch.optim.Optimizer) -> Any:
            when = schedule(cut)
            return prune(start, model, optimizer, schedule=when, calibrate=CALIBRATION, **options)

        return Subject(model, cut + start.run.steps + _bought(start.run, cut), pruner_on)

    return arm


def _bought(run: ArmRun, begun: int) -> int:
    """Steps of the small network that the rest of the dense fine-tuning would cost."""
    return round((run.dense_steps - begun) / run.budget)


def random_release(start: Start) -> Subject:
    """As many structures released as the tournament would, drawn at random."""
    model, run = start.dense, start.run

    def pruner_on(optimizer: torch.optim.Optimizer) -> Any:
        return prune(start, model, optimizer, rectify=RandomRelease(seed=run.seed))

    return Subject(model, run.steps, pruner_on)


def torch_pruning(importance: str) -> Arm:
    """Torch-Pruning by itself, before the first step."""

    def arm(start: Start) -> Subject:
        budget, batches = start.run.budget, list(start.calibration())
        model = start.task.torch_pruned(start.dense, budget, importance, batches)
        return Subject(model, start.run.steps)

    return arm


def last_layers(start: Start) -> Subject:
    """The last layers dropped."""
    model = start.task.shallow(start.dense, start.run.budget)
    return Subject(model, start.run.steps)


def dense_on(start: Start) -> Subject:
    """Not pruned: what the same steps are worth to the dense network."""
    return Subject(start.dense, start.run.steps)


def scratch(*, total: bool) -> Arm:
    """A network of the shape that pruning finds, all its weights drawn anew.

    With ``total`` it is trained for the compute of the dense fine-tuning as well, at its own price
    per step; the pretraining is counted for nobody.
    """

    def arm(start: Start) -> Subject:
        run = start.run
        torch.manual_seed(run.seed)
        model = start.task.fresh()
        # Its weights do not depend on widths, so a random part of it is a random small network.
        parameters = torch.optim.SGD(model.parameters(), lr=0.0)
        pruner = prune(start, model, parameters, smooth=False, importance="random")
        inputs, _ = next(start.calibration())
        model(**inputs).sum().backward()
        parameters.step()
        pruner.step()
        report = pruner.compact()
        model.zero_grad()
        price = report.macs_after / report.macs_before
        steps = run.steps + (round(run.dense_steps / price) if total else 0)
        return Subject(model, steps)

    return arm


ARMS: dict[str, Arm] = {
    "abrupt": pruned(smooth=False),
    "sp": pruned(releases=False),
    "sp_sr": pruned(),
    "variance_abrupt": by_variance(smooth=False),
    "variance_sp_sr": by_variance(),
    "taylor_abrupt": by_taylor(ridge=False, smooth=False),
    "ridge_taylor_abrupt": by_taylor(ridge=True, smooth=False),
    "ridge_abrupt": compensated(smooth=False),
    "ridge_sp_sr": compensated(),
    "sensitive_abrupt": compensated("sensitivity", smooth=False),
    "sensitive_sp": compensated("sensitivity", releases=False),
    "sensitive_sp_sr": compensated("sensitivity"),
    "sensitive_depth": compensated("sensitivity", smooth=False, depth=0.75),
    "sensitive_abrupt_distil": distilled(compensated("sensitivity", smooth=False)),
    "sensitive_early": early(compensated("sensitivity", smooth=False)),
    "sensitive_within": within(),
    "ridge_abrupt_distil": distilled(compensated(smooth=False)),
    "ridge_sp_sr_distil": distilled(compensated()),
    "torch_pruning": torch_pruning("magnitude"),
    "torch_pruning_taylor": torch_pruning("taylor"),
    "torch_pruning_taylor_distil": distilled(torch_pruning("taylor")),
    "torch_pruning_taylor_early": early(torch_pruning("taylor")),
    "last_layers": last_layers,
    "random_selection": pruned(importance="random"),
    "random_release": random_release,
    "depth": compensated(smooth=False, depth=0.75),
    "dense_on": dense_on,
    "scratch_extra": scratch(total=False),
    "scratch_extra_distil": distilled(scratch(total=False)),
    "scratch_total": scratch(total=True),
    "scratch_total_distil": distilled(scratch(total=True)),
}
