"""DepGraph: any Torch-Pruning pruner, made smooth and self-correcting.

The user's own pruner chooses, with all its settings; this host lets what it chose decay in the
live model, replaces what resists from a list of what the pruner would have taken next, and has it
removed by the pruner's own graph, so that both go on together. With ``decay_steps=1`` and no
``rectify`` the model that results is the one that Torch-Pruning produces by itself.

Source: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from decayprune.checks import as_curve, as_optimizers, check_held, check_prunable
from decayprune.compaction import CompactionError, CompactionReport
from decayprune.cost import Budget, CostModel
from decayprune.cutting import (
    Cut,
    difference,
    first_line,
    named_tensors,
    refuse_uncuttable,
    tolerance_for,
)
from decayprune.decay import Curve
from decayprune.decayer import Decayer
from decayprune.hosts import depgraph
from decayprune.hosts.refill import affordable, refill
from decayprune.hosts.stepping import StepWatch
from decayprune.lifecycle import ACTIVE, PRUNED, Event, LifecycleState
from decayprune.rectify import Rectify
from decayprune.selection import Picks
from decayprune.structures import ops
from decayprune.structures.forward import ExampleInputs, outputs
from decayprune.structures.structure_map import StructureMap
from decayprune.structures.trace import trace

_FORMAT = 1


class TorchPruningHost:
    """Decays what a Torch-Pruning pruner chooses, and removes it when it has reached zero.

    Example::

        pruner = tp.pruner.MetaPruner(model, inputs, tp.importance.GroupMagnitudeImportance(),
                                      pruning_ratio=0.5, ignored_layers=[model.fc])
        host = TorchPruningHost(pruner, optimizer, inputs, decay_steps=200, rectify=Rectify())
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step(); host.step(); optimizer.zero_grad()
        report = host.compact()

    Pruning comes in chunks. Each begins with a selection: the pruner's next iterative step (or as
    many of them as ``budget`` needs) is rehearsed on the live model and undone. The structures
    found decay over ``decay_steps`` and are then removed; the last chunk by :meth:`compact`.

    Args:
        pruner: A ``torch_pruning`` pruner, built and not stepped by anyone else from now on.
        optimizer: Holds the model's parameters; it stays bound and its state is cut along.
        example_inputs: As for the pruner.
        decay_steps: ``N``; 1 removes at once, as Torch-Pruning does.
        rectify: When a decaying structure is released; None for smooth pruning alone.
        budget: What remains in the end. The pruner's iterative steps are taken until it holds,
            instead of one per chunk.
        chunks: Instalments; by default one with a budget, else one per iterative step left.
        interval: Optimizer steps from one chunk to the next. By default ``decay_steps``, twice
            that with ``rectify``, so that replacements have time to decay.
        start: Optimizer step of the first chunk.
        reserve: Size of the spare list for replacements, as a share of a chunk.
        slices: Shrink the ``"carriers"`` or ``"all"`` slices of a structure.
        decay: ``"linear"``, ``"cosine"``, or a function of progress.
        tolerance: Largest change of the outputs by a removal, relative to the largest output;
            None for the dtype's default.

    Attributes:
        structures: What is in the model now; structures keep their numbers when others leave.
        events: What happened, in order.
        steps: Optimizer steps followed.
        waited: Steps that did not count because a gradient was not finite.

    Raises:
        TypeError: ``pruner`` is no Torch-Pruning pruner.
        ValueError: Nothing can be pruned, or an argument is out of range.
        ImportError: Torch-Pruning is not installed.
    """

    def __init__(
        self,
        pruner: Any,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        example_inputs: ExampleInputs,
        *,
        decay_steps: int = 1,
        rectify: Rectify | None = None,
        budget: Budget | None = None,
        chunks: int | None = None,
        interval: int | None = None,
        start: int = 0,
        reserve: float = 0.25,
        slices: Literal["carriers", "all"] = "carriers",
        decay: str | Curve = "linear",
        tolerance: float | None = None,
    ) -> None:
        _check_pruner(pruner)
        self.pruner, self.model = pruner, pruner.model
        self.optimizers = as_optimizers(optimizer)
        depgraph.own_channel_groups(pruner)
        depgraph.release_autograd(pruner)
        structures = trace(self.model, example_inputs)
        self.structures = refuse_uncuttable(self.model, structures, example_inputs)
        check_prunable(self.structures)
        self._dense, self._example_inputs = self.structures, example_inputs

        left = pruner.iterative_steps - pruner.current_step
        self.decay_steps, self.rectify, self.budget = decay_steps, rectify, budget
        self._chunks = chunks if chunks is not None else 1 if budget is not None else left
        self._interval = interval if interval is not None else decay_steps * (2 if rectify else 1)
        self._start, self._reserve, self._tolerance = start, reserve, tolerance
        self._check_arguments(left)
        self._first_step = pruner.current_step
        self._slices, self._curve = slices, as_curve(decay)
        if slices not in ("carriers", "all"):
            raise ValueError(f"slices is 'carriers' or 'all', found {slices!r}.")

        names = {item.name for item in self._dense.slices}
        self._parameters = {n: p for n, p in self.model.named_parameters() if n in names}
        check_held(self._parameters, self.optimizers)
        self.cost = CostModel(self._dense, {n: p.shape for n, p in self.model.named_parameters()})
        self.events: list[Event] = []
        self.steps = self.waited = 0
        self._chunk = 0  # chunks that have begun
        self._order: list[int] = []
        self._planned = self.cost.sizes
        self._roots: dict[int, depgraph.Root] = {}
        self._removed = torch.zeros(self._dense.num_structures, dtype=torch.bool)
        self._errors = (0.0, 0.0)
        self._report: CompactionReport | None = None
        self._decayer = self._new_decayer()
        self._watch = StepWatch(self.optimizers, self._before_step)

    # ---------------------------------------------------------------- what a user reads

    @property
    def state(self) -> LifecycleState:
        """Where every structure stands (tensors of shape ``(S,)``, removed ones included)."""
        return self._decayer.state

    @property
    def finished(self) -> bool:
        """Whether all chunks have begun and nothing decays any more."""
        return self.done(self.state, self.steps) and not bool(self.state.decaying.numel())

    def remaining(self) -> dict[str, float]:
        """MACs, parameters and structures that remain, commitments counted, as fractions."""
        return self.cost.fractions(self._kept(self.state), ["macs", "params", "structures"])

    # ---------------------------------------------------------------- what a loop calls

    def observe(self) -> None:
        """Read gradients now: after ``backward()``, before ``pruner.regularize()`` or clipping.

        Without it they are read in :meth:`step`, and a sparsity term in them hides resistance.
        """
        if self.rectify is not None and self._report is None:
            self._check_gradients()
            self._decayer.observe()

    def step(self) -> None:
        """Follow one optimizer step: release, select, shrink, zero, and remove a whole chunk.

        Call it after ``optimizer.step()``, before ``optimizer.zero_grad()``. Where no step was
        taken (accumulation, a step that GradScaler skipped) nothing happens.

        Raises:
            RuntimeError: The model was changed by others, or gradients are gone.
            ValueError: The pruner cannot reach the budget, or chose what cannot be removed.
            CompactionError: A removal would have changed the model; it was undone.
        """
        scale = self._watch.taken()
        if scale is None or self._report is not None:
            return
        self._check_model()
        if self.rectify is not None:
            self._check_gradients()
        events = self._decayer.step(self.steps + 1, self, scale)
        if events is None:
            self.waited += 1
            return
        self.steps += 1
        self.events += events
        last = self._chunk == self._chunks
        if events and not last and not self.state.decaying.numel():
            self._remove()

    def compact(self, *, tolerance: float | None = None) -> CompactionReport:
        """Remove what the last chunk has pruned; the model is Torch-Pruning's then.

        Args:
            tolerance: As in the constructor, for this removal.

        Raises:
            RuntimeError: Structures still decay, or chunks are still to come.
            CompactionError: Outputs would change; this removal was undone.
        """
        if self._report is not None:
            return self._report
        if not self.finished:
            raise RuntimeError(
                f"compact() before the host has finished: {self.state.decaying.numel()} structures "
                f"decay at step {self.steps}, {self._chunks - self._chunk} chunks are to come. "
                "Train until host.finished is True."
            )
        self._remove(tolerance)
        dense, kept = self.cost.sizes, self._kept(self.state)
        self._report = CompactionReport(
            macs_before=self.cost.macs(dense),
            macs_after=self.cost.macs(kept),
            params_before=self.cost.params(dense),
            params_after=self.cost.params(kept),
            removed=int(self._removed.sum()),
            max_abs_error=self._errors[0],
            max_rel_error=self._errors[1],
            widths=tuple(
                (group.layer, group.size * group.width, int(left) * group.width)
                for group, left in zip(self._dense.groups, kept, strict=True)
            ),
            kept=_kept_indices(self._dense, self._removed),
        )
        self._watch.close()
        return self._report

    # ---------------------------------------------------------------- the Selector protocol

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Picks | None:
        """The next chunk when it is due, replacements when something was released."""
        if self._chunk < self._chunks and step >= self._begins(self._chunk):
            return self._begin_chunk(state, step)
        return self._replace(state, step) if released else None

    def spare(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Which of ``ids`` may be released with the chunk's target still met."""
        chosen = affordable(ids.cpu(), self._kept(state), self._dense.group_of, self._met)
        return chosen.to(ids.device)

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the last chunk has begun."""
        return self._chunk == self._chunks

    def _begins(self, chunk: int) -> int:
        return max(1, self._start) + chunk * self._interval

    def _kept(self, state: LifecycleState) -> Tensor:
        return self.cost.keep_counts(state.committed.cpu())

    def _met(self, kept: Tensor) -> bool:
        """Whether some widths are small enough for the chunk that has begun last."""
        if self.pruner.round_to or not self.pruner.global_pruning:
            return bool((kept <= self._planned).all())
        if self.budget is not None:
            return self.cost.meets(self._limit(), kept)
        return self.cost.macs(kept) <= self.cost.macs(self._planned)

    def _limit(self) -> Budget:
        if self.budget is None:
            raise RuntimeError("There is no budget.")
        return self.budget.after(self._chunk / self._chunks)

    def _begin_chunk(self, state: LifecycleState, step: int) -> Picks:
        self._chunk += 1
        victims, spares = self._rehearse()
        cooling = state.cooling(step).cpu()
        self._planned = self._kept(state) - self._count(victims)
        self._order = victims + spares
        self._decayer.last_release = self._begins(self._chunk) - self.decay_steps + 1
        ids = [v for v in victims if not cooling[v]]
        if self._judged():
            free = [s for s in spares if not cooling[s]]
            ids += free[: math.ceil(self.rectify.extra * len(victims)) if self.rectify else 0]
        picks = torch.tensor(sorted(ids), dtype=torch.int64)
        more, warmed = self._fill(state, step, picks)
        return Picks(torch.cat([picks, more]).to(state.phase.device), warmed=warmed)

    def _judged(self) -> bool:
        """Whether a tournament takes place while structures decay."""
        rule = self.rectify
        if rule is None or rule.rule != "tournament":
            return False
        return (self.decay_steps - 1) / self.decay_steps >= rule.judge_at

    def _replace(self, state: LifecycleState, step: int) -> Picks:
        ids, warmed = self._fill(state, step, torch.zeros(0, dtype=torch.int64))
        return Picks(ids.to(state.phase.device), warmed=warmed)

    def _fill(
        self, state: LifecycleState, step: int, picked: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What else has to go for the target, spares first, then the longest released."""
        free = (state.phase == ACTIVE).cpu()
        free[picked] = False
        cool = state.cool_until.cpu()
        ready = [s for s in self._order if free[s] and cool[s] < step]
        waiting = [s for s in self._order if free[s] and cool[s] >= step]
        waiting.sort(key=lambda s: int(cool[s]))
        kept = self._kept(state) - self._count(picked.tolist())
        local = self.pruner.round_to or not self.pruner.global_pruning
        floor = self._planned if local else torch.ones_like(kept)
        order = torch.tensor(ready + waiting, dtype=torch.int64)
        ids = refill(order, kept, floor, self._dense.group_of, self._met)
        warmed = ids[cool[ids] >= step]
        return ids, warmed if warmed.numel() else None

    def _count(self, ids: list[int]) -> Tensor:
        groups = self._dense.group_of[torch.tensor(ids, dtype=torch.int64)]
        return torch.bincount(groups, minlength=self.cost.sizes.numel())

    def _rehearse(self) -> tuple[list[int], list[int]]:
        """What the pruner takes for this chunk, and what it would take next."""
        pruner = self.pruner
        with depgraph.Rehearsal(pruner, self.structures) as rehearsal:
            self._take_steps(rehearsal)
            victims = list(rehearsal.removed)
            after = pruner.current_step, dict(pruner._scope_initial_channels)
            wanted = math.ceil(len(victims) * (1 + self._reserve)) if self.rectify else 0
            for _ in range(8):
                if len(rehearsal.removed) >= wanted:
                    break
                rehearsal.push(max(self._reserve, 0.05) / 4)
            rehearsal.check()
        pruner.current_step, pruner._scope_initial_channels = after
        self._roots.update(rehearsal.roots)
        return victims, rehearsal.removed[len(victims) :]

    def _take_steps(self, rehearsal: depgraph.Rehearsal) -> None:
        pruner, gone = self.pruner, self._kept(self.state)
        if self.budget is None:
            total = pruner.iterative_steps - self._first_step
            until = self._first_step + total * self._chunk // self._chunks
            while pruner.current_step < until:
                rehearsal.step()
            return
        while not self.cost.meets(self._limit(), gone - self._count(rehearsal.removed)):
            if pruner.current_step >= pruner.iterative_steps:
                reached = self.cost.fractions(
                    gone - self._count(rehearsal.removed), list(self.budget.bounds)
                )
                raise ValueError(
                    f"The pruner has taken all its {pruner.iterative_steps} iterative steps and "
                    f"keeps {reached}; the budget asks for {self._limit().bounds}. Build it with "
                    "a higher pruning_ratio (1.0 with many iterative_steps, as Torch-Pruning's "
                    "own scripts do)."
                )
            rehearsal.step()

    # ---------------------------------------------------------------- removal

    def _remove(self, tolerance: float | None = None) -> None:
        """Remove what is pruned: Torch-Pruning cuts widths and graph, our knife the tensors."""
        gone = (self.state.phase == PRUNED).cpu() & ~self._removed
        if not bool(gone.any()):
            return
        self._check_zero(gone)
        before = outputs(self.model, self._example_inputs)
        snapshot, cut = self._cut(gone)
        try:
            problem = None
            error, relative = difference(before, outputs(self.model, self._example_inputs))
            limit = tolerance if tolerance is not None else self._tolerance
            if relative > (limit if limit is not None else tolerance_for(before)):
                problem = f"outputs changed by {relative:.1e} (relative)"
        except Exception as raised:  # forward() of the cut model may fail in any way
            problem, error, relative = f"forward() fails: {first_line(raised)}", 0.0, 0.0
        if problem is not None:
            cut.undo()
            snapshot.restore()
            raise CompactionError(
                f"Removing {int(gone.sum())} structures would change the model: {problem}. They "
                "were left in. Put the layers concerned into the pruner's ignored_layers, or pass "
                "a larger tolerance if the difference is acceptable."
            )
        cut.commit()
        self._errors = max(self._errors[0], error), max(self._errors[1], relative)
        self._settle(gone)

    def _cut(self, gone: Tensor) -> tuple[depgraph.Snapshot, Cut]:
        snapshot = depgraph.Snapshot(self.pruner)
        try:
            depgraph.remove(self.pruner, self.structures, self._roots, gone)
            snapshot.restore_tensors()
            return snapshot, Cut(self.model, self.structures, gone, self.optimizers)
        except BaseException:
            snapshot.restore()
            raise

    def _settle(self, gone: Tensor) -> None:
        """Go on with the smaller model."""
        self._removed = self._removed | gone
        self.structures = depgraph.narrowed(self.structures, gone)
        self.pruner.update_regularizer()
        state = self._decayer.state
        self._decayer = self._new_decayer()
        self._decayer.load(state)

    def _new_decayer(self) -> Decayer:
        return Decayer(
            self.structures,
            self._parameters,
            self.optimizers,
            curve=self._curve,
            decay_steps=self.decay_steps,
            slices=self._slices,
            rectify=self.rectify,
            last_release=self._begins(self._chunk) - self.decay_steps + 1,
        )

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, strings and numbers.

        Save it with the model and the optimizer, after :meth:`step`.
        """
        return {
            "format": _FORMAT,
            "fingerprint": self._dense.fingerprint,
            "settings": self._settings(),
            "steps": self.steps,
            "waited": self.waited,
            "chunk": self._chunk,
            "order": list(self._order),
            "planned": self._planned.clone(),
            "removed": self._removed.clone(),
            "roots": [[n, root.layer, root.out] for n, root in self._roots.items()],
            "current_step": self.pruner.current_step,
            "scopes": dict(self.pruner._scope_initial_channels),
            "errors": list(self._errors),
            "state": self.state.state_dict(),
            "events": [list(vars(event).values()) for event in self.events],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, bit for bit.

        Build model, optimizer, pruner and host as in the beginning, load this state first (it cuts
        the model to the widths it had), then the model's and the optimizer's.

        Raises:
            ValueError: It belongs to another model, or to other settings.
        """
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"Expected the state of a TorchPruningHost of format {_FORMAT}.")
        if state["fingerprint"] != self._dense.fingerprint:
            raise ValueError("This state was saved for another model: the structures differ.")
        for name, value in self._settings().items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"This state was saved with {name}={state['settings'].get(name)!r}, the host "
                    f"was built with {value!r}. Build it with the settings it was saved with."
                )
        self._roots = {n: depgraph.Root(layer, out) for n, layer, out in state["roots"]}
        self._chunk, self._order = int(state["chunk"]), list(state["order"])
        gone = state["removed"].cpu() & ~self._removed
        if bool(gone.any()):
            self._cut(gone)[1].commit()
        lifecycle = LifecycleState.from_state_dict(state["state"], like=self.state)
        self._settle(gone)
        self._decayer.load(lifecycle)
        self._planned = state["planned"].cpu().clone()
        self.pruner.current_step = int(state["current_step"])
        self.pruner._scope_initial_channels = dict(state["scopes"])
        self._errors = state["errors"][0], state["errors"][1]
        self.steps, self.waited = int(state["steps"]), int(state["waited"])
        self.events = [Event(*row) for row in state["events"]]
        self._watch.forget()

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "decay_steps": self.decay_steps,
            "chunks": self._chunks,
            "interval": self._interval,
            "start": self._start,
            "iterative_steps": self.pruner.iterative_steps,
        }
        for name, part in (("budget", self.budget), ("rectify", self.rectify)):
            settings |= {} if part is None else {f"{name}.{k}": v for k, v in vars(part).items()}
        return settings

    # ---------------------------------------------------------------- checks

    def _before_step(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        if first and self._report is None:
            self._decayer.remember()

    def _check_arguments(self, left: int) -> None:
        if self.decay_steps < 1:
            raise ValueError(f"decay_steps is at least 1 (at once), found {self.decay_steps}.")
        if left < 1:
            raise ValueError("The pruner has already taken all its iterative_steps.")
        if self._chunks < 1 or (self.budget is None and self._chunks > left):
            raise ValueError(
                f"chunks is from 1 to the pruner's {left} iterative steps left, found {self._chunks}."
            )
        least = self.decay_steps * (2 if self.rectify else 1)
        if self._interval < least:
            raise ValueError(
                f"interval is at least {least}, so that every decay of a chunk"
                f"{', replacements included,' if self.rectify else ''} is over before the next; "
                f"found {self._interval}."
            )
        if self._reserve < 0:
            raise ValueError(f"reserve is a share from 0, found {self._reserve}.")

    def _check_gradients(self) -> None:
        if all(parameter.grad is None for parameter in self._parameters.values()):
            raise RuntimeError(
                "The host needs the gradients of this step, and every .grad is None. The order is: "
                "loss.backward(); optimizer.step(); host.step(); optimizer.zero_grad()"
            )

    def _check_model(self) -> None:
        now = dict(self.model.named_parameters())
        for name, parameter in self._parameters.items():
            if now.get(name) is not parameter:
                raise RuntimeError(
                    f"{name} was replaced since the host was built. Did you call pruner.step()? "
                    "From now on the host does; remove that call."
                )

    def _check_zero(self, gone: Tensor) -> None:
        left = ops.sum_products(
            ops.labelled(self.structures), gone.numel(), named_tensors(self.model)
        ).cpu()
        if bool((gone & (left != 0)).any()):
            raise CompactionError(
                f"{int((gone & (left != 0)).sum())} structures to remove are not zero. Weights "
                "were changed after they were pruned (a checkpoint loaded, an average copied in?)."
            )


def _check_pruner(pruner: Any) -> None:
    try:
        from torch_pruning.pruner.algorithms.base_pruner import BasePruner
    except ImportError as error:
        raise ImportError(
            "TorchPruningHost needs Torch-Pruning: pip install 'decayprune[torch-pruning]'"
        ) from error
    if not isinstance(pruner, BasePruner):
        raise TypeError(
            f"pruner must be a Torch-Pruning pruner such as tp.pruner.MetaPruner, found "
            f"{type(pruner).__name__}."
        )
    if pruner.prune_num_heads:
        raise ValueError(
            "prune_num_heads=True removes whole heads, and the number of heads that a layer has "
            "left is kept by Torch-Pruning alone; build the pruner with prune_num_heads=False."
        )


def _kept_indices(structures: StructureMap, gone: Tensor) -> dict[tuple[str, int], Tensor]:
    stays = torch.cat([~gone, torch.ones(1, dtype=torch.bool)])
    return {
        (item.name, item.dim): stays[item.structure].nonzero().flatten()
        for item in structures.slices
        if not bool(stays[item.structure].all())
    }
