"""The slices of structures in live parameters: read, zeroed with their moments, merged.

What a decay needs of parameters and optimizers, so that the order of a step
(:mod:`decayprune.method.decayer`) can be read without knowing where a slice lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from decayprune.method.weight_decay import WeightDecay
from decayprune.structures import edits, sums
from decayprune.structures.structure_map import StructureMap

_HALF = (torch.float16, torch.bfloat16)


class LiveWeights:
    """Parameters under training, seen structure by structure.

    Args:
        structures: The structures.
        parameters: Every parameter that the map names.
        optimizers: Who trains them.

    Attributes:
        parameters: By name.
        unpinned: Structures that training may revive once they are zero, bool, shape ``(S,)``.
        device: Where the vectors of a decay live.
        half: Whether some parameters are in half precision.
    """

    def __init__(
        self,
        structures: StructureMap,
        parameters: Mapping[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.parameters, self._optimizers = dict(parameters), list(optimizers)
        self.device = next(iter(self.parameters.values())).device
        self.unpinned = structures.unpinned.to(self.device, copy=True)
        self.half = any(p.dtype in _HALF for p in self.parameters.values())
        ranks = {name: p.dim() for name, p in self.parameters.items()}
        size = structures.num_structures
        carriers = sums.labelled(structures, carriers=True)
        self._carriers = edits.Locator(carriers, size, ranks, self.device)
        self._every = edits.Locator(sums.labelled(structures), size, ranks, self.device)
        self._weight_decay = WeightDecay(self._optimizers, self.parameters)

    def carriers(self, ids: Tensor) -> edits.Pick:
        """The slices whose scaling scales what some structures compute."""
        return self._carriers.pick(ids)

    def every(self, ids: Tensor) -> edits.Pick:
        """All slices of some structures."""
        return self._every.pick(ids)

    def length(self, pick: edits.Pick) -> Tensor:
        """Norms now, shape ``(D,)``."""
        return edits.squares(pick, self.parameters).sqrt()

    def read(self, pick: edits.Pick) -> edits.Values:
        """A copy of the slices as they are now."""
        return edits.gather(pick, self.parameters)

    def gradients(self, pick: edits.Pick) -> edits.Values:
        """A copy of the gradients of the slices; zeros where a parameter has none."""
        return edits.gather(
            pick, {name: self._gradient(name) for name in dict.fromkeys(pick.names)}
        )

    def _gradient(self, name: str) -> Tensor:
        grad = self.parameters[name].grad
        return torch.zeros_like(self.parameters[name]) if grad is None else grad

    def read_anew(
        self, pick: edits.Pick, before: edits.Values | None, optimizer: torch.optim.Optimizer | None
    ) -> edits.Values:
        """A copy of the slices, in which only those of one optimizer are new.

        One of several optimizers may have stepped already; its slices keep their earlier values.

        Args:
            pick: The slices.
            before: The earlier copy, if there is one.
            optimizer: Who is about to step; None for all.
        """
        now = self.read(pick)
        if optimizer is None or before is None:
            return now
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = {name for name in pick.names if id(self.parameters[name]) in held}
        return edits.merged(pick, now, before, own)

    def shrinkage(self, pick: edits.Pick, before: edits.Values) -> Tensor | float:
        """Length that weight decay alone took from each structure in one step."""
        return self._weight_decay.shrinkage(pick, before)

    def zero_(self, ids: Tensor) -> None:
        """Write zeros into all slices of some structures and into their optimizer moments."""
        pick = self.every(ids)
        edits.zero_(pick, self.parameters)
        for optimizer in self._optimizers:
            by_key: dict[str, dict[str, Tensor]] = {}
            for name in dict.fromkeys(pick.names):
                parameter = self.parameters[name]
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        by_key.setdefault(key, {})[name] = value
            for moments in by_key.values():
                edits.zero_(pick, moments)
