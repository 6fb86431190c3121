"""What is read of one step before the optimizer takes it: gradients, and weights they belong to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from decayprune.method import motion
from decayprune.method.lifecycle import LifecycleState
from decayprune.method.live_weights import LiveWeights
from decayprune.method.members import Members
from decayprune.method.weight_decay import WeightDecay


class Reading:
    """What is known of the step that is being taken, of one membership of the decaying set.

    Args:
        weights: Of all structures.
        optimizers: Who trains them.

    Attributes:
        shrunk: Length that weight decay alone takes, shape ``(S,)`` or 0.
        observed: Gradients were read on request; what they are when an optimizer steps is of no
            interest then.
    """

    def __init__(self, weights: LiveWeights, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._weights, self._optimizers = weights, optimizers
        self._weight_decay = WeightDecay(optimizers, weights.parameters)
        self.forget()

    def forget(self) -> None:
        """The next step is another one."""
        self.shrunk: Tensor | float = 0.0
        # Inner products of weights and gradients, of the parameters of each optimizer.
        self._along: dict[int, Tensor] = {}
        self.observed = False

    def __bool__(self) -> bool:
        """Whether gradients were read."""
        return bool(self._along)

    def remember(
        self,
        members: Members,
        state: LifecycleState,
        optimizer: torch.optim.Optimizer | None,
        *,
        first: bool,
        grad_scale: Tensor | float,
    ) -> None:
        """As :meth:`Decayer.remember`, of some structures."""
        if first:
            self.shrunk = self._weight_decay.shrinkage(members.carriers, state.length)
        if not self.observed:
            # Of an optimizer that stepped alone before this one was complete it is read again.
            self._read(members, self._optimizers if optimizer is None else [optimizer], grad_scale)

    def observe(
        self,
        members: Members,
        grad_scale: Tensor | float = 1.0,
        stepped: Collection[torch.optim.Optimizer] = (),
    ) -> None:
        """As :meth:`Decayer.observe`, of some structures."""
        waiting = [o for o in self._optimizers if o not in stepped or id(o) not in self._along]
        self._read(members, waiting, grad_scale)
        self.observed = True

    def resistance(self, state: LifecycleState) -> Tensor | None:
        """``-<g, w> / ||w||``, shape ``(S,)``, if gradients were read."""
        if not self._along:
            return None
        first, *others = self._along.values()
        return motion.resistance(state, sum(others, start=first))

    def _read(
        self,
        members: Members,
        optimizers: Sequence[torch.optim.Optimizer],
        grad_scale: Tensor | float,
    ) -> None:
        for optimizer in optimizers:
            own = self._weights.held_by(optimizer, members.carriers)
            self._along[id(optimizer)] = self._weights.along(own) / grad_scale
