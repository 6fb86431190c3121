"""DHSPG as published, structure by structure, from its description (host alone, one-step cut)."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.oto import BaseStep, Structure, flat, write


class SlowDHSPG:
    def __init__(
        self,
        parameters: dict[str, Tensor],
        groups: list[list[Structure]],
        *,
        lr: float,
        variant: str,
        momentum: float,
        weight_decay: float,
        lmbda: float,
        amplify: float,
        hat: float,
        epsilon: float,
        target: float,
        tolerance: float,
        start_step: int,
        divisible: int = 1,
    ) -> None:
        self.parameters, self.groups = parameters, groups
        self.base = BaseStep(variant, momentum, weight_decay)
        self.lr, self.lmbda, self.amplify, self.hat = lr, lmbda, amplify, hat
        self.epsilon, self.target, self.tolerance = epsilon, target, tolerance
        self.start_step, self.divisible = start_step, divisible
        self.total = sum(len(group) for group in groups)
        self.steps = 0
        self.penalised: set[tuple[int, int]] | None = None
        self.zero: set[tuple[int, int]] = set()
        self.strengths: list[float] = []

    def step(self) -> None:
        self.steps += 1
        d = {n: self.base.direction(n, p, self.steps) for n, p in self.parameters.items()}
        if self.penalised is None and self.steps == self.start_step + 1:
            self._partition(d)
        reached = len(self.zero) >= self.target * self.total - 1e-9
        new = {}
        for i, group in enumerate(self.groups):
            for j, structure in enumerate(group):
                new[i, j] = self._moved(
                    flat(self.parameters, structure),
                    flat(d, structure),
                    penalised=not reached and (i, j) in (self.penalised or set()),
                )
                if (i, j) in self.zero:
                    new[i, j] = torch.zeros_like(new[i, j])
        inside = {name for group in self.groups for s in group for name, _ in s}
        with torch.no_grad():
            for name, p in self.parameters.items():
                if name not in inside:
                    decay = self.base.weight_decay if self.base.variant == "adamw" else 0.0
                    p -= self.lr * (d[name] + decay * p)
        for (i, j), values in new.items():
            write(self.parameters, self.groups[i][j], values)
            if float(values.norm()) == 0:
                self.zero.add((i, j))

    def _moved(self, x: Tensor, d: Tensor, penalised: bool) -> Tensor:
        moved = x - self.lr * d
        if self.base.variant == "adamw":
            moved = moved - self.lr * self.base.weight_decay * x
        if not penalised or float(x.norm()) == 0:
            return moved
        strength, along = self.lmbda, float(x @ d)
        if along < 0:
            low = -along / float(x.norm())
            high = -(float(d.norm()) ** 2) * float(x.norm()) / along
            strength = min(max(self.amplify * low, self.lmbda), self.lmbda * self.hat)
            if strength >= high:
                strength = (low + high) / 2
        self.strengths.append(strength)
        moved = moved - self.lr * strength * x / (x.norm() + 1e-8)
        if float(moved @ x) < self.epsilon * float(x.norm()) ** 2:
            return torch.zeros_like(moved)
        return moved

    def _partition(self, d: dict[str, Tensor]) -> None:
        where, cosine, inverse = [], [], []
        for i, group in enumerate(self.groups):
            for j, structure in enumerate(group):
                x, g = flat(self.parameters, structure), flat(d, structure)
                where.append((i, j))
                cosine.append(float(x @ g / (x.norm() * g.norm())))
                inverse.append(float(1 / (x.norm() / x.numel() + 1e-6)))
        length = [sum(v * v for v in values) ** 0.5 for values in (cosine, inverse)]
        score = {
            key: 0.5 * c / length[0] + 0.5 * v / length[1]
            for key, c, v in zip(where, cosine, inverse, strict=True)
        }
        count = int(self.total * min(self.target + self.tolerance, 0.999))
        top = set(sorted(where, key=lambda key: -score[key])[:count])
        self.penalised = set()
        for i, group in enumerate(self.groups):
            mine = sorted(((i, j) for j in range(len(group))), key=lambda key: score[key])
            if len(mine) <= self.divisible:
                continue
            kept = sum(key not in top for key in mine)
            kept = max(round(kept / self.divisible), 1) * self.divisible
            self.penalised |= set(mine[kept:])
