"""Gate Decorator, step by step and gate by gate, from the paper's description.

Gates are modules with a mask that is multiplied in, grouped by hand; convolutions are frozen in
ticks by ``requires_grad``; the threshold is taken from one Python list of scores. Nothing of the
library is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """``g * (norm(x) + bias) * mask`` with the norm's own weight frozen at one."""

    def __init__(self, norm: nn.BatchNorm2d, group: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(norm.num_features, affine=False).to(norm.weight)
        self.norm.load_state_dict(
            {k: v for k, v in norm.state_dict().items() if k not in ("weight", "bias")}
        )
        self.group = group
        self.g = nn.Parameter(norm.weight.detach().clone())
        self.b = nn.Parameter((norm.bias / norm.weight).detach().clone())
        self.mask = torch.ones_like(self.g)
        self.score = torch.zeros_like(self.g)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.norm(x) + self.b.view(1, -1, 1, 1)) * self.g.view(1, -1, 1, 1)
        return y * self.mask.view(1, -1, 1, 1)


class GateDecorator:
    """The published loop: a tock, then ticks that prune, a tock after every few of them."""

    def __init__(
        self,
        model: nn.Module,
        gates: list[Gate],
        loss: Callable[[nn.Module, Tensor], Tensor],
        batches: Iterator[Tensor],
        *,
        tick_steps: int,
        tock_steps: int,
        ticks: int,
        share: float,
        sparsity: float,
        tick_lr: float,
        tock_lr: tuple[float, float],
        momentum: float,
        weight_decay: float,
    ) -> None:
        self.model, self.gates, self.loss, self.batches = model, gates, loss, batches
        self.tick_steps, self.tock_steps, self.ticks = tick_steps, tock_steps, ticks
        self.share, self.sparsity = share, sparsity
        self.tick_lr, self.tock_lr = tick_lr, tock_lr
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=1.0, momentum=momentum, weight_decay=weight_decay
        )

    def run(self, prunings: int) -> Iterator[dict[int, list[int]]]:
        """After each pruning: closed channels by group."""
        self.tock()
        for number in range(1, prunings + 1):
            self.tick()
            self.prune()
            yield {gate.group: (gate.mask == 0).nonzero().flatten().tolist() for gate in self.gates}
            if number % self.ticks == 0:
                self.tock()

    def _train(self, lr: float, penalty: bool, score: bool) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.loss(self.model, next(self.batches))
        if penalty:
            # A masked gate gets no gradient from the task; the penalty only shrinks what is gone.
            loss = loss + self.sparsity * sum(gate.g.abs().sum() for gate in self.gates)
        self.optimizer.zero_grad()
        loss.backward()
        if score:
            for gate in self.gates:
                gate.score += (gate.g.detach() * gate.g.grad).abs()
        self.optimizer.step()

    def tock(self) -> None:
        low, high = self.tock_lr
        half = self.tock_steps / 2
        for i in range(self.tock_steps):
            if i < half:
                lr = (1 - i / half) * low + (i / half) * high
            else:
                lr = (1 - (i - half) / half) * high + ((i - half) / half) * low
            self._train(lr, penalty=True, score=False)

    def tick(self) -> None:
        convolutions = [m for m in self.model.modules() if isinstance(m, nn.Conv2d)]
        for conv in convolutions:
            conv.requires_grad_(False)
        for gate in self.gates:
            gate.score.zero_()
        self.optimizer.zero_grad()
        for _ in range(self.tick_steps):
            self._train(self.tick_lr, penalty=False, score=True)
        for conv in convolutions:
            conv.requires_grad_(True)

    def prune(self) -> None:
        scores: dict[int, list[float]] = {}
        count: dict[int, int] = {}
        for gate in self.gates:
            own = (gate.score * gate.mask).tolist()
            before = scores.get(gate.group, [0.0] * len(own))
            scores[gate.group] = [a + b for a, b in zip(before, own, strict=True)]
            count[gate.group] = count.get(gate.group, 0) + 1
        ranking: list[float] = []
        left = 0
        for group, values in scores.items():
            minimal = max(1, int(len(values) * 0.1))
            left += sum(v != 0 for v in values) * count[group]
            ranking += [v for v in sorted(values)[:-minimal] if v != 0] * count[group]
        threshold = sorted(ranking)[int(left * self.share)]
        for gate in self.gates:
            values = scores[gate.group]
            minimal = max(1, int(len(values) * 0.1))
            hard = sorted(values)[-minimal]
            keep = torch.tensor([v >= hard or v > threshold for v in values])
            gate.mask *= keep.to(gate.mask)
