"""Whether all ranks of a data-parallel run have decided the same.

Every rank decides for itself, from weights and gradients that are the same on all of them. Where
they are not (another order of additions on the device, a batch that one rank alone has seen), the
ranks end with networks of different shapes, and say so late or never. So each keeps a digest of
its decisions, and now and then all compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from decayprune.method.moves import Moves
from decayprune.structures.wrappers import wrapper_of

_EVERY = 16  # steps from one comparison to the next, the same on all ranks


class Agreement:
    """A digest of what one rank has decided, compared with those it shares gradients with.

    Nothing is compared unless a DistributedDataParallel holds the model: processes may well prune
    models of their own.

    Args:
        model: The model.
        name: What the user calls the host in a loop, for messages.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._model, self._name, self._digest = model, name, ""
        self._new: list[Moves] = []  # read where there is somebody to compare with
        self._looked = False
        self._group: torch.distributed.ProcessGroup | None = None

    def note(self, step: int, moves: Iterable[Moves]) -> None:
        """Take in what happened at a step; at some steps, compare.

        Raises:
            RuntimeError: A rank has decided something else.
        """
        self._new += moves
        if step % _EVERY == 0:
            self._compare(step)

    def _compare(self, step: int) -> None:
        moves, self._new = self._new, []
        if not self._looked:  # looking takes longer than a step may
            wrapper = wrapper_of(self._model)
            self._looked, self._group = True, getattr(wrapper, "process_group", None)
        if self._group is None:
            return
        lines = "".join(f"{m.step},{m.kind},{m.ids.tolist()};" for m in moves)
        if lines:
            self._digest = hashlib.sha256((self._digest + lines).encode()).hexdigest()
        everybody: list[str | None] = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(everybody, self._digest, group=self._group)
        other = [rank for rank, found in enumerate(everybody) if found != everybody[0]]
        if other:
            raise RuntimeError(
                f"By step {step} the {self._name} has not decided the same on all ranks (rank "
                f"{other[0]} is not at one with rank 0), and they would cut their models to "
                "different shapes. Their weights or gradients differ: was something changed after "
                "the backward pass on one rank alone, or a checkpoint loaded? On a GPU, "
                "torch.use_deterministic_algorithms(True) rules out another order of additions. "
                "Go on from the last checkpoint."
            )
