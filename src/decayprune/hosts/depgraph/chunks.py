"""What a Torch-Pruning pruner takes chunk by chunk, and what stands in for it.

The Selector of :class:`~decayprune.hosts.depgraph.host.TorchPruningHost`. At the beginning of a
chunk the pruner rehearses: the structures it would remove start to decay, and those it would
remove next, at slightly higher ratios, are the spare list from which releases are replaced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.hosts.depgraph.rehearsal import Rehearsal, Root
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.method.rectify import Rectify
from decayprune.method.selector import Selection
from decayprune.selection.target import Target
from decayprune.structures.structure_map import StructureMap

_TRIES = 8  # higher ratios to try for the spare list


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """When chunks begin, in optimizer steps.

    Attributes:
        count: How many there are.
        interval: Steps from one to the next.
        start: Step of the first.
        decay_steps: ``N``.

    Raises:
        ValueError: A value is out of range.
    """

    count: int
    interval: int
    start: int
    decay_steps: int

    def __post_init__(self) -> None:
        if self.decay_steps < 1:
            raise ValueError(f"decay_steps is at least 1 (at once), found {self.decay_steps}.")
        if self.count < 1:
            raise ValueError(f"chunks is at least 1, found {self.count}.")
        if self.start < 0:
            raise ValueError(f"start is a step, 0 or later; found {self.start}.")
        if self.interval < self.decay_steps:
            raise ValueError(
                f"interval is at least decay_steps={self.decay_steps}, so that the decays of a "
                f"chunk are over before the next begins; found {self.interval}."
            )

    @classmethod
    def plan(
        cls,
        pruner: Any,
        budget: Budget | None,
        rectify: Rectify | None,
        *,
        count: int | None,
        interval: int | None,
        start: int,
        decay_steps: int,
    ) -> Chunks:
        """The chunks of a host, with its defaults.

        Args:
            pruner: Each of its iterative steps left is a chunk, if there is no budget.
            budget: With one, there is one chunk.
            rectify: With it, replacements need time to decay.
            count: How many chunks; None for the default.
            interval: Steps between them; None for the default.
            start: Step of the first.
            decay_steps: ``N``.

        Raises:
            ValueError: A value is out of range, or the pruner has no steps left.
        """
        left = pruner.iterative_steps - pruner.current_step
        if left < 1:
            raise ValueError(
                f"The pruner has already taken all its {pruner.iterative_steps} iterative steps."
            )
        if budget is None and count is not None and count > left:
            raise ValueError(
                f"chunks is at most the {left} iterative steps that the pruner has left, found "
                f"{count}."
            )
        if count is None:
            count = left if budget is None else 1
        needed = decay_steps * (2 if rectify else 1)
        chunks = cls(
            count=count,
            interval=needed if interval is None else interval,
            start=start,
            decay_steps=decay_steps,
        )
        if chunks.interval < needed:
            raise ValueError(
                f"With rectify, interval is at least twice decay_steps={decay_steps}, so that "
                f"replacements have time to decay; found {chunks.interval}."
            )
        return chunks

    def begins(self, chunk: int) -> int:
        """Step at which a chunk selects, the first being number 0."""
        return max(1, self.start) + chunk * self.interval

    def last_release(self, begun: int) -> int:
        """Step before which structures may be released: replacements still have time to decay.

        Args:
            begun: Chunks that have begun.
        """
        return self.begins(begun) - self.decay_steps + 1


class ChunkSelector:
    """Takes what a pruner would take, and replaces what is released.

    Args:
        pruner: The Torch-Pruning pruner.
        structures: What is in the model.
        cost: What remains costs, as fractions of the model at the beginning.
        chunks: When they begin.
        budget: What remains in the end; None for the pruner's own ratios.
        rectify: Decides whether there is a spare list, and what a tournament enrols.
        reserve: Size of the spare list, as a share of a chunk.

    Attributes:
        structures: What is in the model now.
        begun: Chunks that have begun.
        roots: Where the pruner takes hold of each group.
    """

    def __init__(
        self,
        pruner: Any,
        structures: StructureMap,
        cost: CostModel,
        chunks: Chunks,
        *,
        budget: Budget | None,
        rectify: Rectify | None,
        reserve: float,
    ) -> None:
        self._pruner, self.structures, self._cost, self._chunks = pruner, structures, cost, chunks
        self._budget, self._reserve = budget, reserve if rectify else 0.0
        self._extra = rectify.verdict.extra_share(chunks.decay_steps) if rectify else 0.0
        self._first_step = pruner.current_step
        # With rounded or equal shares, a width has to end where the pruner wants it.
        self._local = bool(pruner.round_to) or not pruner.global_pruning
        least = torch.ceil(cost.sizes * (1 - pruner.max_pruning_ratio) - 1e-9)
        self._target = Target(
            group_of=structures.group_of,
            cost=cost,
            met=self._met,
            floor=least.to(torch.int64).clamp(min=1),
            unit=torch.ones_like(cost.sizes),  # the pruner itself has rounded what it plans
        )
        self.begun = 0
        self.roots: dict[int, Root] = {}
        self._order: list[int] = []
        self._planned = cost.sizes

    # ---------------------------------------------------------------- the protocol

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Selection | None:
        """The next chunk when it is due, replacements when something was released."""
        if self.begun < self._chunks.count and step >= self._chunks.begins(self.begun):
            return self._begin(state, step)
        if not released:
            return None
        return self._filled(state, step, torch.zeros(0, dtype=torch.int64, device="cpu"))

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Those of ``ids`` that may be released with the chunk's target still met."""
        return self._target.releasable(ids.cpu(), self.kept(state)).to(ids.device)

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the last chunk has begun."""
        return self.begun == self._chunks.count

    def kept(self, state: LifecycleState) -> Tensor:
        """Structures left in each group, commitments counted, shape ``(G,)``."""
        return self._cost.keep_counts(state.committed.cpu())

    # ---------------------------------------------------------------- targets

    def _limit(self, budget: Budget) -> Budget:
        return budget.after(self.begun / self._chunks.count)

    def _met(self, kept: Tensor) -> bool:
        """Whether some widths are what the chunk that began last wants."""
        if self._local:
            return bool((kept <= self._planned).all())
        if self._budget is not None:
            return self._cost.meets(self._limit(self._budget), kept)
        return self._cost.macs(kept) <= self._cost.macs(self._planned)

    # ---------------------------------------------------------------- choices

    def _begin(self, state: LifecycleState, step: int) -> Selection:
        self.begun += 1
        kept = self.kept(state)
        victims, spares = self._rehearse(kept)
        self._planned = kept - self._target.count(victims)
        self._order = [*victims.tolist(), *spares.tolist()]
        cooling = state.cooling(step).cpu()
        ids = self._target.enrolled(victims, spares[~cooling[spares]], kept, self._extra)
        return self._filled(state, step, ids[~cooling[ids]])

    def _filled(self, state: LifecycleState, step: int, picked: Tensor) -> Selection:
        """With what else has to go for the target: spares in order, then the longest released."""
        free = (state.phase == ACTIVE).cpu()
        free[picked] = False
        cool, cooling = state.cool_until.cpu(), state.cooling(step).cpu()
        order = torch.tensor([s for s in self._order if free[s]], dtype=torch.int64, device="cpu")
        oldest = order[cooling[order]]
        oldest = oldest[torch.sort(cool[oldest], stable=True).indices]
        floor = self._planned if self._local else torch.ones_like(self._planned)
        more = replace(self._target, floor=floor).fitting(
            order, self.kept(state) - self._target.count(picked), oldest
        )
        ids = torch.cat([picked, more]).to(state.phase.device)
        return Selection(ids, cooldowns_ended=more[cooling[more]])

    def _rehearse(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """What the pruner takes for this chunk, and what it would take next."""
        pruner = self._pruner
        with Rehearsal(pruner, self.structures) as rehearsal:
            self._take_steps(rehearsal, kept)
            needed = len(rehearsal.removed)
            after = pruner.current_step, dict(pruner._scope_initial_channels)
            wanted = math.ceil(needed * (1 + self._reserve))
            for _ in range(_TRIES):
                if len(rehearsal.removed) >= wanted:
                    break
                rehearsal.push(max(self._reserve, 0.05) / 4)
            rehearsal.check()
        pruner.current_step, pruner._scope_initial_channels = after
        self.roots.update(rehearsal.roots)
        removed = torch.tensor(rehearsal.removed, dtype=torch.int64, device="cpu")
        return removed[:needed], removed[needed:]

    def _take_steps(self, rehearsal: Rehearsal, kept: Tensor) -> None:
        pruner = self._pruner
        if self._budget is None:
            total = pruner.iterative_steps - self._first_step
            until = self._first_step + total * self.begun // self._chunks.count
            while pruner.current_step < until:
                rehearsal.step()
            return
        limit = self._limit(self._budget)
        left = kept
        while not self._cost.meets(limit, left):
            if pruner.current_step >= pruner.iterative_steps:
                raise ValueError(
                    f"The pruner has taken all its {pruner.iterative_steps} iterative steps and "
                    f"keeps {self._cost.fractions(left, list(limit.bounds))}; wanted is "
                    f"{limit.bounds}. Build it with a higher pruning_ratio (1.0 with many "
                    "iterative_steps, as Torch-Pruning's own scripts do)."
                )
            rehearsal.step()
            left = kept - self._target.count(
                torch.tensor(rehearsal.removed, dtype=torch.int64, device="cpu")
            )

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, the pruner's own step included."""
        return {
            "begun": self.begun,
            "order": list(self._order),
            "planned": self._planned.clone(),
            "roots": [[number, root.layer, root.out] for number, root in self.roots.items()],
            "first_step": self._first_step,
            "current_step": self._pruner.current_step,
            "scopes": dict(self._pruner._scope_initial_channels),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.begun, self._order = int(state["begun"]), list(state["order"])
        self._planned = state["planned"].cpu().clone()
        self.roots = {number: Root(layer, out) for number, layer, out in state["roots"]}
        self._first_step = int(state["first_step"])
        self._pruner.current_step = int(state["current_step"])
        self._pruner._scope_initial_channels = dict(state["scopes"])
