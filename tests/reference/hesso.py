"""HESSO as published, structure by structure, from its description (decay tied to the period)."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.oto import BaseStep, Structure, flat, write


class SlowHESSO:
    def __init__(
        self,
        parameters: dict[str, Tensor],
        groups: list[list[Structure]],
        *,
        lr: float,
        variant: str,
        momentum: float,
        weight_decay: float,
        target: float,
        start_step: int,
        pruning_steps: int,
        periods: int,
    ) -> None:
        self.parameters, self.groups = parameters, groups
        self.base = BaseStep(variant, momentum, weight_decay)
        self.lr, self.start_step, self.periods = lr, start_step, periods
        self.length = pruning_steps // periods
        self.where = [(i, j) for i, group in enumerate(groups) for j in range(len(group))]
        self.quota = int(len(self.where) * min(target, 0.999))
        self.steps = self.begun = 0
        self.active: set[tuple[int, int]] = set()
        self.pruned: set[tuple[int, int]] = set()

    def step(self) -> None:
        self.steps += 1
        d = {n: self.base.direction(n, p, self.steps) for n, p in self.parameters.items()}
        since = self.steps - self.start_step
        if since >= 1 and self.begun < self.periods and (since - 1) % self.length == 0:
            self._pick(d)
        with torch.no_grad():
            for name, p in self.parameters.items():
                decay = self.base.weight_decay if self.base.variant == "adamw" else 0.0
                p -= self.lr * (d[name] + decay * p)
        t = since % self.length
        for i, j in self.active | self.pruned:
            structure = self.groups[i][j]
            factor = (self.length - t - 1) / (self.length - t) if (i, j) in self.active else 0
            write(self.parameters, structure, flat(self.parameters, structure) * factor)
        if t == self.length - 1:
            self.pruned |= self.active
            self.active = set()

    def _pick(self, d: dict[str, Tensor]) -> None:
        self.begun += 1
        scores: list[list[float]] = []
        for i, j in self.where:
            x, g = flat(self.parameters, self.groups[i][j]), flat(d, self.groups[i][j])
            norm, along = float(x.norm()), float(x @ g)
            cosine = along / (norm + 1e-8) / (float(g.norm()) + 1e-8) + 1
            scores.append(
                [norm, norm / (x.numel() + 1e-6), cosine, abs(along), 0.5 * abs(along) ** 2]
            )
        lengths = [(1e-8 + sum(row[k] ** 2 for row in scores)) ** 0.5 + 1e-8 for k in range(5)]
        mixed = {
            key: sum(0.2 * row[k] / lengths[k] for k in range(5))
            for key, row in zip(self.where, scores, strict=True)
        }
        share = self.quota // self.periods
        last = self.begun == self.periods
        wanted = self.quota - share * (self.periods - 1) if last else share
        free = sorted((k for k in self.where if k not in self.pruned), key=lambda k: mixed[k])
        left = {i: sum(k[0] == i for k in free) for i in range(len(self.groups))}
        for key in free:  # the last structure of a group stays, and another group makes up for it
            if len(self.active) < wanted and left[key[0]] > 1:
                self.active.add(key)
                left[key[0]] -= 1
