"""The length that weight decay takes from a structure by itself.

It is no resistance to a decay and no yielding either, so the figures of self-rectifying leave it
out; which part of its length each parameter loses follows from the optimizer's settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decayprune.structures import edits

Rate = Tensor | float
"""Share of its length that a parameter loses per step."""


class WeightDecay:
    """Weight decay of some optimizers, as rates of shrinkage.

    Args:
        optimizers: Their settings are read anew at every call.
        parameters: Parameters by name.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, Tensor]
    ) -> None:
        self._optimizers, self._parameters = optimizers, parameters
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    def shrinkage(self, pick: edits.Pick, length: Tensor) -> Tensor | float:
        """Length that weight decay alone takes in a step from the weights of now.

        Args:
            pick: Slices.
            length: Norms of the structures now, shape ``(S,)``.

        Returns:
            Shape ``(S,)``, or 0 where there is no weight decay.
        """
        rates = list(self._rates(pick.names))
        if len(rates) == 1 and rates[0][1].issuperset(pick.names):  # nothing has to be read
            return rates[0][0] * length
        if not rates:
            return 0.0
        lost = [rate * edits.squares(pick.only(own), self._parameters) for rate, own in rates]
        return torch.stack(lost).sum(0) / length.clamp(min=1e-38)

    def _rates(self, names: Iterable[str]) -> Iterable[tuple[Rate, set[str]]]:
        """Rates and who has them; those that lose nothing are left out.

        Exact for decoupled decay (AdamW) and SGD without momentum; with momentum the steady state
        ``lr * wd / (1 - momentum)``; 0 for Adam's coupled decay, which is no shrinkage by itself.
        """
        wanted = set(names)
        found: dict[float, tuple[Rate, set[str]]] = {}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                rate = _rate(optimizer, group)
                own = (self._names.get(id(parameter)) for parameter in group["params"])
                held = {name for name in own if name is not None and name in wanted}
                if held and (isinstance(rate, Tensor) or rate):
                    # A learning rate that is a tensor is not asked for its value.
                    key = id(rate) if isinstance(rate, Tensor) else rate
                    found.setdefault(key, (rate, set()))[1].update(held)
        return found.values()


def _rate(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Rate:
    decay = group.get("weight_decay", 0.0)
    # AdamW says so in its groups only since it is a kind of Adam (torch 2.7).
    adamw = isinstance(optimizer, torch.optim.AdamW)
    if "betas" in group and not group.get("decoupled_weight_decay", adamw):
        return 0.0
    if not isinstance(decay, Tensor) and not decay:
        return 0.0
    rate: Rate = group["lr"] * decay / (1 - (group.get("momentum", 0.0) or 0.0))
    return rate
