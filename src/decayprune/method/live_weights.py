"""The slices of structures in live parameters: measured, scaled, zeroed with their moments.

What a decay needs of parameters and optimizers, so that the order of a step
(:mod:`decayprune.method.decayer`) can be read without knowing where a slice lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from decayprune.method.frozen import Frozen
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
        unpinned: Structures that training may revive once they are zero, bool, shape ``(S,)``, on
            the CPU, as all masks are that say where to look.
        frozen: Values of those that are not trained, from before anything decayed.
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
        self.frozen = Frozen(self.parameters)
        self.device = next(iter(self.parameters.values())).device
        self.unpinned = structures.unpinned.clone()
        self.half = any(p.dtype in _HALF for p in self.parameters.values())
        size, carriers = structures.num_structures, sums.labelled(structures, carriers=True)
        self._carriers = edits.Locator(carriers, size, self.parameters, self.device)
        self._every = edits.Locator(sums.labelled(structures), size, self.parameters, self.device)

    def carriers(self, chosen: Tensor) -> edits.Pick:
        """The slices whose scaling scales what some structures compute; a mask ``(S,)`` of them."""
        return self._carriers.pick(chosen)

    def every(self, chosen: Tensor) -> edits.Pick:
        """All slices of some structures; a mask ``(S,)`` of them."""
        return self._every.pick(chosen)

    def length(self, pick: edits.Pick) -> Tensor:
        """Norms now, shape ``(S,)``."""
        return edits.squares(pick, self.parameters).sqrt()

    def along(self, pick: edits.Pick) -> Tensor:
        """Inner products of weights and gradients, shape ``(S,)``.

        Gradients that are not there count as zeros.
        """
        grads = {name: self.parameters[name].grad for name in pick.names}
        found = {name: grad for name, grad in grads.items() if grad is not None}
        if len(found) < len(grads):
            pick = pick.only(found)
        return edits.dot(pick, self.parameters, found)

    def held_by(self, optimizer: torch.optim.Optimizer, pick: edits.Pick) -> edits.Pick:
        """The slices of one optimizer's parameters."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = {name for name in pick.names if id(self.parameters[name]) in held}
        return pick if len(own) == len(set(pick.names)) else pick.only(own)

    def zero_(self, chosen: Tensor) -> None:
        """Write zeros into all slices of some structures and into their optimizer moments.

        Args:
            chosen: Which, bool, shape ``(S,)``.
        """
        pick = self.every(chosen)
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

    def give_back_(self, chosen: Tensor) -> None:
        """Write what is kept of frozen parameters into the slices of some structures.

        Args:
            chosen: Which, bool, shape ``(S,)``.
        """
        values = self.frozen.values
        if values and bool(chosen.any()):
            edits.copy_(self.every(chosen).only(values), self.parameters, values)

    def zero_frozen_(self, chosen: Tensor) -> None:
        """Write zeros where :meth:`give_back_` would write values.

        Args:
            chosen: Which structures, bool, shape ``(S,)``.
        """
        if self.frozen.values and bool(chosen.any()):
            edits.zero_(self.every(chosen).only(self.frozen.values), self.parameters)
