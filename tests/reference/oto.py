"""What the slow twins of DHSPG and HESSO share: rows by hand, and the base step, one at a time.

A structure is a list of (parameter name, row); a group is a list of structures. Nothing of the
library is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

Structure = list[tuple[str, int]]


class BaseStep:
    """Directions of SGD (heavy ball), Adam and AdamW, one parameter at a time."""

    def __init__(self, variant: str, momentum: float, weight_decay: float) -> None:
        self.variant, self.momentum, self.weight_decay = variant, momentum, weight_decay
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    def direction(self, name: str, p: Tensor, t: int) -> Tensor:
        g = p.grad.clone()
        if self.variant != "adamw":
            g = g + self.weight_decay * p.detach()
        if self.variant == "sgd":
            if self.momentum == 0:
                return g
            old = self.first.get(name)
            self.first[name] = g.clone() if old is None else self.momentum * old + g
            return self.first[name].clone()
        m = 0.9 * self.first.get(name, torch.zeros_like(g)) + 0.1 * g
        v = 0.999 * self.second.get(name, torch.zeros_like(g)) + 0.001 * g * g
        self.first[name], self.second[name] = m, v
        return (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def flat(tensors: dict[str, Tensor], structure: Structure) -> Tensor:
    """All weights of a structure as one vector."""
    return torch.cat([tensors[name][row].detach().reshape(-1) for name, row in structure])


def write(tensors: dict[str, Tensor], structure: Structure, values: Tensor) -> None:
    """The reverse of :func:`flat`."""
    start = 0
    with torch.no_grad():
        for name, row in structure:
            size = tensors[name][row].numel()
            tensors[name][row] = values[start : start + size].view(tensors[name][row].shape)
            start += size
