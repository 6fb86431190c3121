"""DepGraph: any Torch-Pruning pruner, made smooth and self-correcting.

The user's own pruner chooses, with all its settings; this host lets what it chose decay in the
live model, replaces what resists from a list of what the pruner would have taken next, and has it
removed by the pruner's own graph, so that both go on together. With ``decay_steps=1`` and no
``rectify`` the model that results is the one that Torch-Pruning produces by itself.

Source: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decayprune.cost import Budget, CostModel
from decayprune.hosts.depgraph import rehearsal, removal
from decayprune.hosts.depgraph.chunks import Chunks, ChunkSelector
from decayprune.method.decay import Curve
from decayprune.method.decayer import Decayer
from decayprune.method.lifecycle import Event, LifecycleState
from decayprune.method.rectify import Rectify
from decayprune.session import arguments, resume
from decayprune.session.arguments import as_curve, as_optimizers, check_held, check_prunable
from decayprune.session.step_watch import StepWatch
from decayprune.structures.example import ExampleInputs
from decayprune.structures.tracing.trace import trace
from decayprune.structures.wrappers import is_wrapped
from decayprune.surgery.compact import CompactionReport
from decayprune.surgery.copies import matching, refuse_late
from decayprune.surgery.cut import refuse_uncuttable

_ORDER = "loss.backward(); optimizer.step(); host.step(); optimizer.zero_grad()"


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
        arguments.check_free(pruner.model)
        self.pruner, self.model = pruner, pruner.model
        self.optimizers = as_optimizers(optimizer)
        rehearsal.own_channel_groups(pruner)
        rehearsal.release_autograd(pruner)
        structures = trace(self.model, example_inputs)
        self.structures = refuse_uncuttable(self.model, structures, example_inputs)
        check_prunable(self.structures)
        self._dense, self._example_inputs = self.structures, example_inputs

        arguments.check_slices(slices)
        self._slices, self._curve, self._tolerance = slices, as_curve(decay), tolerance
        self.rectify, self.budget = rectify, budget
        self._chunks = Chunks.plan(
            pruner,
            budget,
            rectify,
            count=chunks,
            interval=interval,
            start=start,
            decay_steps=decay_steps,
        )
        if reserve < 0:
            raise ValueError(f"reserve is a share from 0, found {reserve}.")

        names = {item.name for item in self._dense.slices}
        self._parameters = {n: p for n, p in self.model.named_parameters() if n in names}
        check_held(self._parameters, self.optimizers)
        self.cost = CostModel(self._dense, {n: p.shape for n, p in self.model.named_parameters()})
        if budget is not None:
            arguments.check_kind("budget", budget, Budget, "dp.Budget(macs=0.5)")
            self.cost.meets(budget, self.cost.sizes)  # raises now if a cost cannot be measured
        self.events: list[Event] = []
        self.steps = self.waited = 0
        self._selector = ChunkSelector(
            pruner,
            self._dense,
            self.cost,
            self._chunks,
            budget=budget,
            rectify=rectify,
            reserve=reserve,
        )
        self._removed = torch.zeros(self._dense.num_structures, dtype=torch.bool)
        self._errors = (0.0, 0.0)
        self._report: CompactionReport | None = None
        self._decayer = self._new_decayer()
        self._watch = StepWatch(self.optimizers, self._before_step)
        arguments.claim(self.model, self)

    # ---------------------------------------------------------------- what a user reads

    @property
    def state(self) -> LifecycleState:
        """Where every structure stands (tensors of shape ``(S,)``, removed ones included)."""
        return self._decayer.state

    @property
    def finished(self) -> bool:
        """Whether all chunks have begun and nothing decays any more."""
        return self._selector.done(self.state, self.steps) and not self.state.decaying.numel()

    def remaining(self) -> dict[str, float]:
        """MACs, parameters and structures that remain, commitments counted, as fractions."""
        return self.cost.fractions(
            self._selector.kept(self.state), ["macs", "params", "structures"]
        )

    # ---------------------------------------------------------------- what a loop calls

    def observe(self) -> None:
        """Read gradients now: after ``backward()``, before ``pruner.regularize()`` or clipping.

        Without it they are read in :meth:`step`, and a sparsity term in them hides resistance.
        """
        if self.rectify is not None and self._report is None:
            arguments.check_gradients(self._parameters.values(), "host.observe()", _ORDER)
            self._decayer.observe()

    def step(self) -> None:
        """Follow one optimizer step: release, select, shrink, zero, and remove a whole chunk.

        Call it after ``optimizer.step()``, before ``optimizer.zero_grad()``. Where no step was
        taken (accumulation, a step that GradScaler skipped) nothing happens.

        Raises:
            RuntimeError: The model was changed by others, gradients are gone, or several chunks
                are to be cut inside a DistributedDataParallel.
            ValueError: The pruner cannot reach the budget, or chose what cannot be removed.
            CompactionError: A removal would have changed the model; it was undone.
        """
        if not self._watch.taken() or self._report is not None:
            return
        self._check_model()
        if self.steps == 0 and self._chunks.count > 1 and is_wrapped(self.model):
            raise RuntimeError(
                f"The {self._chunks.count} chunks are cut while the model trains, and the buckets "
                "of the DistributedDataParallel around it would keep the old sizes. Build the "
                "host with chunks=1, and delete the wrapper before compact()."
            )
        if self.rectify is not None:
            arguments.check_gradients(self._parameters.values(), "host.step()", _ORDER)
        events = self._decayer.step(self.steps + 1, self._selector)
        if not resume.follow(self, events):
            return
        self._decayer.last_release = self._chunks.last_release(self._selector.begun)
        if events and not self.finished and not self.state.decaying.numel():
            self._remove()

    def compact(
        self,
        *,
        tolerance: float | None = None,
        copies: nn.Module | Sequence[nn.Module] = (),
    ) -> CompactionReport:
        """Remove what the last chunk has pruned; the model is Torch-Pruning's then.

        Args:
            tolerance: As in the constructor, for this removal.
            copies: Copies of the model with weights of their own (moving averages, wrapped as
                ``AveragedModel`` or bare), zeroed and cut at the same structures;
                of the shapes that the model has now, so with several chunks made after the last
                but one.

        Raises:
            RuntimeError: Structures still decay, chunks are still to come, a living
                DistributedDataParallel wraps the model, or copies come after it was cut.
            ValueError: A copy is none; nothing was cut.
            CompactionError: Outputs would change; this removal was undone.
        """
        if self._report is not None:
            refuse_late(copies)
            return self._report
        if not self.finished:
            raise RuntimeError(
                f"compact() before the host has finished: {self.state.decaying.numel()} structures "
                f"decay at step {self.steps}, and {self._selector.begun} of {self._chunks.count} "
                "chunks have begun. Train until host.finished is True."
            )
        self._remove(tolerance, copies)
        dense, kept = self.cost.sizes, self._selector.kept(self.state)
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
            kept=removal.kept_indices(self._dense, self._removed),
        )
        self.close()
        return self._report

    def close(self) -> None:
        """Let go of the model and the optimizer: another pruner may start."""
        self._watch.close()
        arguments.give_up(self.model, self)

    # ---------------------------------------------------------------- removal

    def _remove(
        self, tolerance: float | None = None, copies: nn.Module | Sequence[nn.Module] = ()
    ) -> None:
        """Remove what is pruned and still there."""
        others = matching(copies, self.model)
        gone = (self.state.pruned).cpu() & ~self._removed
        if not bool(gone.any()):
            return
        error, relative = removal.remove(
            self.pruner,
            self.structures,
            self._selector.roots,
            gone,
            self.optimizers,
            self._example_inputs,
            self._tolerance if tolerance is None else tolerance,
            others,
        )
        self._errors = max(self._errors[0], error), max(self._errors[1], relative)
        self._settle(gone)

    def _settle(self, gone: Tensor) -> None:
        """Go on with the smaller model."""
        self._removed = self._removed | gone
        self.structures = rehearsal.narrowed(self.structures, gone)
        self._selector.structures = self.structures
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
            decay_steps=self._chunks.decay_steps,
            slices=self._slices,
            rectify=self.rectify,
            last_release=self._chunks.last_release(self._selector.begun),
        )

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, strings and numbers.

        Save it with the model and the optimizer, after :meth:`step`.
        """
        return {
            **resume.saved(self, self._dense, self.state, self._settings()),
            "removed": self._removed.clone(),
            "selector": self._selector.state_dict(),
            "errors": list(self._errors),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, bit for bit.

        Build model, optimizer, pruner and host as in the beginning, load this state first (it cuts
        the model to the widths it had), then the model's and the optimizer's.

        Raises:
            ValueError: It belongs to another model, or to other settings.
        """
        resume.check(state, self.state_dict())
        self._selector.load_state_dict(state["selector"])
        gone = state["removed"].cpu() & ~self._removed
        if bool(gone.any()):
            roots = self._selector.roots
            removal.cut(self.pruner, self.structures, roots, gone, self.optimizers)[1].commit()
        lifecycle = resume.go_on(self, state, self.state)
        self._settle(gone)
        self._decayer.load(lifecycle)
        self._errors = state["errors"][0], state["errors"][1]
        self._watch.forget()

    def _settings(self) -> dict[str, Any]:
        parts = {"chunks": self._chunks, "budget": self.budget, "rectify": self.rectify}
        return {"iterative_steps": self.pruner.iterative_steps} | resume.flat(**parts)

    # ---------------------------------------------------------------- checks

    def _before_step(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        if self._report is None:
            self._decayer.remember(optimizer)

    def _check_model(self) -> None:
        now = dict(self.model.named_parameters())
        for name, parameter in self._parameters.items():
            if now.get(name) is not parameter:
                raise RuntimeError(
                    f"{name} was replaced since the host was built. Did you call pruner.step()? "
                    "From now on the host does; remove that call."
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
