"""The tick-tock schedule of Gate Decorator, and what a tick prunes.

A *tick* is a short training of gates, inner biases and linear layers alone, in which scores are
collected; at its end a small share of the gates closes. After every few ticks comes a *tock*:
training of everything with an L1 penalty on the gates. Pure functions of steps and scores.

Source: You et al., Gate Decorator, NeurIPS 2019, arXiv 1909.08174, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Phase(NamedTuple):
    """What one optimizer step belongs to.

    Attributes:
        tick: A tick; else a tock.
        position: Steps of it that came before.
        length: Steps that it has.
    """

    tick: bool
    position: int
    length: int

    @property
    def last(self) -> bool:
        """Whether this is its last step."""
        return self.position == self.length - 1


@dataclass(frozen=True, kw_only=True)
class TickTock:
    """How long ticks and tocks last, in optimizer steps. It begins with a tock.

    Attributes:
        tick_steps: One epoch in the paper.
        tock_steps: Ten epochs in the paper.
        ticks: Ticks between two tocks.
        share: Share of the open gates that a tick closes.
        stop: Step by which the budget is met. Ticks close more than their share where an even pace
            needs it, and the last of them only what the budget still lacks. None, as published:
            whole shares until the budget holds, whenever that is.

    Raises:
        ValueError: A value is out of range.
    """

    tick_steps: int
    tock_steps: int
    ticks: int = 10
    share: float = 0.005
    stop: int | None = None

    def __post_init__(self) -> None:
        for name in ("tick_steps", "ticks"):
            if getattr(self, name) < 1:
                raise ValueError(f"TickTock.{name} is at least 1, found {getattr(self, name)}.")
        if self.tock_steps < 0:
            raise ValueError(f"TickTock.tock_steps is at least 0, found {self.tock_steps}.")
        if not 0 < self.share < 1:
            raise ValueError(f"TickTock.share is above 0 and below 1, found {self.share}.")
        if self.stop is not None and self.stop < self.tock_steps + self.tick_steps:
            raise ValueError(
                f"TickTock.stop is not before the first tick ends, which is step "
                f"{self.tock_steps + self.tick_steps}; found {self.stop}."
            )

    @classmethod
    def for_run(cls, total_steps: int) -> TickTock:
        """For a run of so many optimizer steps, far shorter than the paper's 700 epochs.

        Ticks of 5 % each, or more where the pace needs it, fill the first eighth of the run, at
        whose end the budget is met: the steps that are left to recover in count for more
        (docs/study.md).

        Args:
            total_steps: Optimizer steps from the host's construction to the end of training.
        """
        if total_steps < 1:
            raise ValueError(f"TickTock.for_run needs at least 1 step, found {total_steps}.")
        stop = max(1, total_steps // 8)
        tick = max(3, total_steps // 80)  # a decay has to fit into it
        tick = max(1, min(tick, stop // 3))
        tock = min(2 * tick, stop - tick)
        return cls(tick_steps=tick, tock_steps=tock, ticks=4, share=0.05, stop=stop)

    def phase(self, step: int) -> Phase:
        """What the optimizer step of that number belongs to.

        Args:
            step: The first is 1.
        """
        since = step - 1 - self.tock_steps
        if since < 0:
            return Phase(False, step - 1, self.tock_steps)
        ticking = self.ticks * self.tick_steps
        within = since % (ticking + self.tock_steps)
        if within < ticking:
            return Phase(True, within % self.tick_steps, self.tick_steps)
        return Phase(False, within - ticking, self.tock_steps)

    def progress(self, step: int) -> float:
        """Share of the ticks up to ``stop`` that have ended once this step is over.

        Args:
            step: The first is 1.
        """
        if self.stop is None:
            return 0.0
        return min(1.0, self._ended(step) / self._ended(self.stop))

    def _ended(self, step: int) -> int:
        cycles, within = divmod(
            max(0, step - self.tock_steps), self.ticks * self.tick_steps + self.tock_steps
        )
        return cycles * self.ticks + min(self.ticks, within // self.tick_steps)


def triangle(phase: Phase, low: float, high: float) -> float:
    """Learning rate of a tock: up from ``low`` to ``high`` in its first half, and down again.

    Example:
        >>> [round(triangle(Phase(False, i, 4), 0.0, 1.0), 2) for i in range(4)]
        [0.0, 0.5, 1.0, 0.5]
    """
    way = phase.position / (phase.length / 2)
    return low + (high - low) * (way if way < 1 else 2 - way)


def least_open(sizes: Tensor, minimal: float) -> Tensor:
    """Structures of each group that stay in any case: ``max(1, int(size * minimal))``.

    Args:
        sizes: Structures of each group, shape ``(G,)``.
        minimal: Share of a group.
    """
    return (sizes * minimal).to(torch.int64).clamp(min=1)


def closing(
    score: Tensor,
    alive: Tensor,
    eligible: Tensor,
    gates: Tensor,
    group_of: Tensor,
    least: Tensor,
    share: float,
) -> Tensor:
    """What a tick closes, the lowest score in front.

    Each structure counts as often as it has gates. With ``num`` = ``share`` of the gates that are
    open, all structures up to the score in place ``num`` (counted from 0) of the ranking of those
    that may be picked close, the ``least`` best of each group excepted.

    Args:
        score: Sum of ``|g * dL/dg|`` over the tick and over a structure's gates, shape ``(S,)``.
        alive: Neither decaying nor pruned, bool, ``(S,)``.
        eligible: Alive and may be picked, bool, ``(S,)``.
        gates: How many gates each structure has, int64, ``(S,)``.
        group_of: Group of each structure, ``(S,)``.
        least: How many of each group stay in any case, ``(G,)``.
        share: Share of the open gates.

    Returns:
        Structures, int64.
    """
    open_score = torch.where(alive, score, -1.0)
    order = torch.sort(open_score, descending=True, stable=True).indices
    by_group = order[torch.sort(group_of[order], stable=True).indices]
    sizes = torch.bincount(group_of, minlength=least.numel())
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(by_group)
    place[by_group] = torch.arange(by_group.numel(), device="cpu") - first[group_of[by_group]]
    protected = place < least[group_of]

    ranked = eligible & ~protected & (score > 0)
    values, position = torch.sort(score[ranked], stable=True)
    if not values.numel():
        return (eligible & ~protected).nonzero().flatten()
    counts = gates[ranked][position].cumsum(0)
    wanted = int(int((gates * alive).sum()) * share)
    at = min(int(torch.searchsorted(counts, wanted, right=True)), values.numel() - 1)
    chosen = (eligible & ~protected & (score <= values[at])).nonzero().flatten()
    return chosen[torch.sort(score[chosen], stable=True).indices]
