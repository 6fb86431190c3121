"""Pruned structures stay zero, whatever training would revive."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from decayprune.method.live_weights import LiveWeights
from decayprune.structures import edits
from decayprune.structures.structure_map import StructureMap

logger = logging.getLogger("decayprune")

_LOOK_EVERY = 64  # steps from one look at the pruned structures to the next


class Pinning:
    """Zeroes again, after each step, all-zero slices that are no fixed point of training.

    Args:
        structures: The structures.
        weights: Theirs; which of them training revives is noted there.
        carriers: Zero the carriers of every pruned structure, and nothing else is looked for.

    Attributes:
        zeroed: What is zeroed after each step; None: not known yet.
    """

    def __init__(self, structures: StructureMap, weights: LiveWeights, *, carriers: bool) -> None:
        self._structures, self._weights, self._carriers = structures, weights, carriers
        self._look_again = 0
        self.forget()

    def state_dict(self) -> dict[str, Any]:
        """Who is zeroed again once pruned, and when it is looked next, under ``pinning``."""
        return {"pinning": {"unpinned": self._weights.unpinned.clone(), "look": self._look_again}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, among other things.

        Args:
            state: Older ones say nothing of this: it is looked after the next of their ``steps``.

        Raises:
            ValueError: It says who is zeroed by something else than yes or no.
        """
        self.forget()
        if "pinning" not in state:
            self.look(int(state["steps"]) + 1)
            return
        unpinned = state["pinning"]["unpinned"]
        if unpinned.dtype != torch.bool:
            raise ValueError(
                f"This pruner state is damaged: pinning.unpinned is of {unpinned.dtype}, expected "
                "torch.bool. Load one that state_dict() returned; nothing was changed."
            )
        self._weights.unpinned = unpinned.to("cpu", copy=True)
        self.look(int(state["pinning"]["look"]))

    def forget(self) -> None:
        """What is pruned may have changed."""
        self.zeroed: edits.Pick | None = None

    def look(self, step: int) -> None:
        """Look at the pruned structures after a step, and now and then from there on."""
        self._look_again = step

    def looks(self, step: int) -> bool:
        """Whether it is looked after this step."""
        return step == self._look_again

    def after(self, step: int, pruned: Callable[[], Tensor]) -> None:
        """What follows a step.

        Args:
            step: Its number.
            pruned: Who is pruned, bool, shape ``(S,)``, on the CPU; it is asked only if that may
                have changed.
        """
        if self.looks(step):
            self._note_revived(step, pruned())
        if self.zeroed is None:
            gone = pruned()
            self.zeroed = self._weights.every(gone & self._weights.unpinned)
            self._pinned = self._weights.carriers(gone) if self._carriers else self.zeroed
        self.zero_()

    def zero_(self) -> None:
        """Zero once more what was zeroed last."""
        if self.zeroed is not None:
            edits.zero_(self.zeroed, self._weights.parameters)
            if self._carriers:
                edits.zero_(self._pinned, self._weights.parameters)

    def _note_revived(self, step: int, pruned: Tensor) -> None:
        """Find pruned structures that are zero no longer, and zero them from now on."""
        self._look_again = step + _LOOK_EVERY
        if self._carriers:
            return
        still = pruned & ~self._weights.unpinned
        alive = self._weights.length(self._weights.every(still)) > 0
        revived = alive.cpu().nonzero().flatten()
        if revived.numel():
            self._weights.unpinned[revived] = True
            self.zeroed = None
            logger.warning(
                "step %d: %d pruned structures are zero no longer (the first: channel %d of %s). "
                "Something writes to them after they were zeroed: noise on the weights, an "
                "optimizer whose codes cannot hold a zero, weights that were copied in. They are "
                "zeroed after every step from now on",
                step,
                revived.numel(),
                int(self._structures.index[revived[0]]),
                self._structures.layer_of(int(revived[0])),
            )
