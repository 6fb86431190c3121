"""DepGraph: any Torch-Pruning pruner, made smooth and self-correcting.

The user's own pruner chooses, with all its settings; this host lets what it chose decay in the
live model, replaces what resists from a list of what the pruner would have taken next, and has it
removed by the pruner's own graph, so that both go on together. With ``decay_steps=1`` and no
``rectify`` the model that results is the one that Torch-Pruning produces by itself.

Source: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from decayprune.cost import Budget
from decayprune.hosts.depgraph import rehearsal, removal
from decayprune.hosts.depgraph.chunks import Chunks, ChunkSelector
from decayprune.method.decay import Curve
from decayprune.method.rectify import Rectify
from decayprune.session import arguments, resume
from decayprune.session.host import BesideOptimizer
from decayprune.session.integrity import check_free
from decayprune.session.session import Session
from decayprune.structures.example import ExampleInputs
from decayprune.structures.wrappers import is_wrapped
from decayprune.surgery.compact import CompactionReport, compaction_report
from decayprune.surgery.compare import Comparison
from decayprune.surgery.copies import Copies, matching
from decayprune.surgery.undo import Undo


class TorchPruningHost(BesideOptimizer):
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
        _check(pruner, budget, reserve)
        arguments.check_slices(slices)
        curve = arguments.as_curve(decay)
        self._chunks = Chunks.plan(
            pruner,
            budget,
            rectify,
            count=chunks,
            interval=interval,
            start=start,
            decay_steps=decay_steps,
        )
        rehearsal.own_channel_groups(pruner)
        rehearsal.release_autograd(pruner)
        self._session = Session(pruner.model, optimizer, example_inputs)
        self.pruner, self.rectify, self.budget = pruner, rectify, budget
        self._tolerance = tolerance
        if budget is not None:
            self.cost.meets(budget, self.cost.sizes)  # raises now if a cost cannot be measured
        self._selector = ChunkSelector(
            pruner,
            self.structures,
            self.cost,
            self._chunks,
            budget=budget,
            rectify=rectify,
            reserve=reserve,
        )
        self._removed = torch.zeros(self.structures.num_structures, dtype=torch.bool, device="cpu")
        self._errors = (0.0, 0.0)
        self._found = Comparison(0.0, 0.0, 0.0, compared=1, numbers=1)  # of the last removal
        self._session.begin(
            self,
            self._selector,
            curve=curve,
            decay_steps=decay_steps,
            slices=slices,
            rectify=rectify,
            last_release=self._chunks.last_release(self._selector.begun),
        )

    # ---------------------------------------------------------------- after a step

    def _follow(self) -> None:
        """Let the decay go on, and remove a whole chunk that has reached zero.

        Raises:
            RuntimeError: The model was changed by others, gradients are gone, or several chunks
                are to be cut inside a DistributedDataParallel.
            ValueError: The pruner cannot reach the budget, or chose what cannot be removed.
            CompactionError: A removal would have changed the model; it was undone.
        """
        self._check_model()
        if self.steps == 0 and self._chunks.count > 1 and is_wrapped(self.model):
            raise RuntimeError(
                f"The {self._chunks.count} chunks are cut while the model trains, and the buckets "
                "of the DistributedDataParallel around it would keep the old sizes. Build the "
                "host with chunks=1, and delete the wrapper before compact()."
            )
        events = self._session.follow()
        if events is None:
            return
        self._limit_releases()
        if events and not self.finished and not self.lifecycle.decaying.numel():
            self._remove_chunk()

    def _outlook(self) -> str:
        return f" ({self._selector.begun} of {self._chunks.count} chunks have begun)"

    # ---------------------------------------------------------------- removal

    def _cut(self, tolerance: float | None, copies: Copies) -> CompactionReport:
        """Remove what the last chunk has pruned; the model is Torch-Pruning's then.

        Copies have the shapes that the model has now: with several chunks, they were made after
        the last but one.
        """
        undo = Undo()
        try:
            self._remove(undo, tolerance, copies)
            return compaction_report(
                self._session.dense,
                self.cost,
                self._removed,
                replace(self._found, error=self._errors[0], relative=self._errors[1]),
            )
        except BaseException:
            undo.run()
            raise

    def _remove_chunk(self) -> None:
        """Remove what is pruned, while training goes on."""
        undo = Undo()
        try:
            self._remove(undo, None, ())
        except BaseException:
            undo.run()
            raise

    def _remove(self, undo: Undo, tolerance: float | None, copies: Copies) -> None:
        """Remove what is pruned and still there; ``undo`` gets the way back, for the host too."""
        others = matching(copies, self.model)
        gone = self.lifecycle.pruned.cpu() & ~self._removed
        if not bool(gone.any()):
            return
        found = removal.remove(
            undo,
            self.pruner,
            self.structures,
            self._selector.roots,
            gone,
            self._session.optimizers,
            self._session.example_inputs,
            self._tolerance if tolerance is None else tolerance,
            others,
        )
        undo.keep(self, self._selector, self._session)
        self._found = found
        self._errors = max(self._errors[0], found.error), max(self._errors[1], found.relative)
        self._settle(gone)

    def _settle(self, gone: Tensor) -> None:
        """Go on with the smaller model."""
        self._removed = self._removed | gone
        self._session.narrow(rehearsal.narrowed(self.structures, gone))
        self._limit_releases()
        self._selector.structures = self.structures
        self.pruner.update_regularizer()

    def _limit_releases(self) -> None:
        """Replacements of what is released need time to decay before the next chunk begins."""
        self._session.decayer.last_release = self._chunks.last_release(self._selector.begun)

    # ---------------------------------------------------------------- save and resume

    def _own_state(self) -> dict[str, Any]:
        return {
            "removed": self._removed.clone(),
            "selector": self._selector.state_dict(),
            "errors": list(self._errors),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Cut the model to the widths it had, then go on.

        Build model, optimizer, pruner and host as in the beginning, load this state first, then
        the model's and the optimizer's.
        """
        self._selector.load_state_dict(state["selector"])
        gone = state["removed"].cpu() & ~self._removed
        if bool(gone.any()):
            roots, optimizers = self._selector.roots, self._session.optimizers
            undo = Undo()
            try:
                removal.repeat(undo, self.pruner, self.structures, roots, gone, optimizers)
            except BaseException:
                undo.run()
                raise
        self._settle(gone)
        self._session.restore(state)
        self._errors = state["errors"][0], state["errors"][1]

    def _settings(self) -> dict[str, Any]:
        parts = {"chunks": self._chunks, "budget": self.budget, "rectify": self.rectify}
        return {"iterative_steps": self.pruner.iterative_steps} | resume.flat(**parts)

    # ---------------------------------------------------------------- checks

    def _check_model(self) -> None:
        now = dict(self.model.named_parameters())
        for name, parameter in self._session.parameters.items():
            if now.get(name) is not parameter:
                raise RuntimeError(
                    f"{name} was replaced since the host was built. Did you call pruner.step()? "
                    "From now on the host does; remove that call."
                )


def _check(pruner: Any, budget: Budget | None, reserve: float) -> None:
    """What can be said before the pruner is touched."""
    _check_pruner(pruner)
    check_free(pruner.model)
    if budget is not None:
        arguments.check_kind("budget", budget, Budget, "dp.Budget(macs=0.5)")
    if reserve < 0:
        raise ValueError(f"reserve is a share from 0, found {reserve}.")


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
