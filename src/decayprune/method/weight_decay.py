"""The length that weight decay takes from a structure by itself.

It is no resistance to a decay and no yielding either, so the figures of self-rectifying leave it
out; which part of its length each parameter loses follows from the optimizer's settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from decayprune.structures import edits


class WeightDecay:
    """Weight decay of some optimizers, as rates of shrinkage.

    Args:
        optimizers: Their settings are read anew at every call.
        parameters: Parameters by name.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, Tensor]
    ) -> None:
        self._optimizers = optimizers
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    def shrinkage(self, pick: edits.Pick, before: edits.Values) -> Tensor | float:
        """Length that weight decay alone took in one step.

        Args:
            pick: Slices of ``D`` structures.
            before: Their values before the step.

        Returns:
            Shape ``(D,)``, or 0 where there is no weight decay.
        """
        rates = self._rates()
        if not any(rates.get(name, 0) for name in pick.names):
            return 0.0
        share = spread(pick, rates, before)
        weighted = edits.Values(
            before.flat * share.flat,
            tuple(v * s for v, s in zip(before.blocks, share.blocks, strict=True)),
        )
        length = edits.dot(pick, before, before).sqrt()
        return edits.dot(pick, before, weighted) / length.clamp(min=1e-38)

    def _rates(self) -> dict[str, float]:
        """Share of its length that each parameter loses per step; without those that lose none.

        Exact for decoupled decay (AdamW) and SGD without momentum; with momentum the steady state
        ``lr * wd / (1 - momentum)``; 0 for Adam's coupled decay, which is no shrinkage by itself.
        """
        rates = {}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                rate = float(group["lr"]) * float(group.get("weight_decay", 0.0))
                # AdamW says so in its groups only since it is a kind of Adam (torch 2.7).
                adamw = isinstance(optimizer, torch.optim.AdamW)
                if "betas" in group and not group.get("decoupled_weight_decay", adamw):
                    rate = 0.0
                rate /= 1 - float(group.get("momentum", 0.0) or 0.0)
                if rate:
                    held = (self._names.get(id(parameter)) for parameter in group["params"])
                    rates.update({name: rate for name in held if name is not None})
        return rates


def spread(pick: edits.Pick, by_name: Mapping[str, float], like: edits.Values) -> edits.Values:
    """One number per tensor, 0 where there is none, at every picked place of it."""
    flat = torch.zeros_like(like.flat)
    if pick.vectors:
        pairs = zip(pick.vectors, pick.sizes, strict=True)
        parts = [like.flat.new_full((size,), by_name.get(name, 0.0)) for name, size in pairs]
        flat = torch.cat(parts)[pick.position]
    blocks = zip(pick.blocks, like.blocks, strict=True)
    return edits.Values(flat, tuple(v.new_full((), by_name.get(b.name, 0.0)) for b, v in blocks))
