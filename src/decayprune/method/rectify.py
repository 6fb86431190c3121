"""Self-rectifying: does training resist the decay of a structure, and is it to be released?

With ``w`` the carrier slices of a structure, ``g`` the gradient of the task loss for them and
``p = -<g, w> / ||w||`` (how fast descent would lengthen ``w``), a decay keeps three figures:

* ``c_rate = mean(p) / rms(p)`` in [-1, 1]: how *consistently* training resists;
* ``c_len``: which part of the length that the decay took, training gave back;
* ``work = sum(p * (length taken))``: what the decay has cost so far, to first order, in units of
  the loss.

Source: the names C_rate, C_len, T_rate, T_len and the idea are those of arXiv 2406.03879; the
formulas, ``work`` and the tournament rule are our definition (docs/deviations.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rectify:
    """When a decaying structure is released, and for how long it is then left alone.

    Attributes:
        rule: ``"thresholds"``: release when ``c_rate > t_rate`` and ``c_len > t_len``, once a
            structure has decayed for ``warm_up``; another one is picked in its place.
            ``"tournament"``: every round enrols ``extra`` more structures than its budget needs,
            and at ``judge_at`` releases those whose decay has cost the most work, as many as the
            budget allows.
        t_rate: Threshold on ``c_rate``, in [-1, 1].
        t_len: Threshold on ``c_len``, a ratio of lengths.
        warm_up: Share of a decay, in [0, 1], during which thresholds release nothing.
        extra: Share of the structures of a round that are enrolled beyond its need; none are where
            a decay is over before it can be judged (``decay_steps=1``).
        judge_at: Share of a decay, in (0, 1], after which the tournament is decided.
        cool_down: How long a released structure cannot be picked again, in decays
            (multiples of ``decay_steps``).

    Raises:
        ValueError: A value lies outside its range.
    """

    rule: Literal["thresholds", "tournament"] = "tournament"
    t_rate: float = 0.5
    t_len: float = 0.25
    warm_up: float = 0.25
    extra: float = 0.05
    judge_at: float = 0.5
    cool_down: float = 2.0

    def __post_init__(self) -> None:
        if self.rule not in ("thresholds", "tournament"):
            raise ValueError(f"Rectify.rule is 'thresholds' or 'tournament', found {self.rule!r}.")
        ranges = {
            "t_rate": (-1.0, 1.0),
            "t_len": (-math.inf, math.inf),
            "warm_up": (0.0, 1.0),
            "extra": (0.0, 1.0),
            "judge_at": (0.0, 1.0),
            "cool_down": (0.0, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"Rectify.{name} is a number from {low:g} to {high:g}, found {value!r}."
                )

    @property
    def verdict(self) -> Thresholds | Tournament:
        """The rule as an object that says who leaves."""
        if self.rule == "thresholds":
            return Thresholds(self.t_rate, self.t_len, self.warm_up)
        return Tournament(self.extra, self.judge_at)


class Statistics(NamedTuple):
    """Running sums over the decay of each structure, every field of shape ``(S,)``."""

    observed: Tensor
    """Optimizer steps observed."""
    resistance: Tensor
    """Sum of ``p``."""
    resistance_squared: Tensor
    """Sum of ``p ** 2``."""
    given: Tensor
    """Length that training gave back (weight decay's own shrinkage not counted)."""
    taken: Tensor
    """Length that the decay took."""
    work: Tensor
    """Sum of ``p`` times length taken."""

    @classmethod
    def zeros(cls, size: int, device: torch.device | None = None) -> Statistics:
        """Statistics of ``size`` structures before their first step, in the room of one."""
        return cls(*(torch.zeros((), device=device).expand(size) for _ in cls._fields))

    def cpu(self) -> Statistics:
        """The same on the CPU, in one copy."""
        return Statistics(*torch.stack(list(self)).cpu())

    def at(self, ids: Tensor) -> Statistics:
        """The statistics of some structures."""
        return Statistics(*(field[ids] for field in self))

    def reset(self, ids: Tensor) -> Statistics:
        """The same, with some structures starting afresh."""
        return Statistics(*(field.index_fill(0, ids, 0) for field in self))


def observe(
    statistics: Statistics, decaying: Tensor, *, resistance: Tensor, given: Tensor, taken: Tensor
) -> Statistics:
    """Add one optimizer step to the running sums of the structures that decay.

    Args:
        statistics: The sums so far.
        decaying: Which, bool, shape ``(S,)``; what the others are told is not looked at.
        resistance: ``p = -<g, w> / ||w||`` at the weights that the step started from, ``(S,)``.
        given: ``||w|| after the step - ||w|| before it``, weight decay added back, ``(S,)``.
        taken: Length that the decay takes at this step, ``(S,)``.
    """
    ones = torch.ones_like(resistance)
    new = torch.stack([ones, resistance, resistance**2, given, taken, resistance * taken])
    new = torch.where(decaying, new, 0.0).to(statistics.work.dtype)
    return Statistics(*torch._foreach_add(list(statistics), list(new)))


def c_rate(statistics: Statistics) -> Tensor:
    """Consistency of the resistance, ``mean(p) / rms(p)``, in [-1, 1], shape ``(S,)``.

    0 where nothing was observed. Free of the scale of weights, loss and layer.
    """
    rms = (statistics.resistance_squared * statistics.observed).sqrt()
    return torch.where(rms > 0, statistics.resistance / rms.clamp(min=1e-38), 0.0).clamp(-1, 1)


def c_len(statistics: Statistics) -> Tensor:
    """Share of the length taken that training gave back, shape ``(S,)``; 0 before any step."""
    safe = torch.where(statistics.taken == 0, 1.0, statistics.taken)
    return torch.where(statistics.taken == 0, 0.0, statistics.given / safe)


class Leaving(NamedTuple):
    """Who leaves the decay by a verdict.

    Attributes:
        order: Positions of the structures that may, the first to leave in front, shape ``(n,)``.
        number: So many of them leave, the first, and are replaced at once; None: as many as the
            target can spare.
    """

    order: Tensor
    number: int | None


class Verdict(Protocol):
    """A rule that says which decaying structures are released."""

    def leaving(
        self,
        statistics: Statistics,
        progress: Tensor,
        last_progress: Tensor,
        *,
        step: int,
        final: bool,
    ) -> Leaving:
        """Who leaves at this step.

        Args:
            statistics: Sums of the decaying structures, each ``(D,)``.
            progress: Share of the decay that lies behind each, in [0, 1], shape ``(D,)``.
            last_progress: The same one step ago.
            step: The optimizer step just taken.
            final: Whether nothing will be released after this step.
        """

    def judges(self, progress: Tensor, last_progress: Tensor, *, final: bool) -> Tensor:
        """Which decays are of an age to be judged at this step, bool; of a shape with all.

        It is asked of ages alone, so that no step waits for figures that nobody looks at.

        Args:
            progress: As in :meth:`leaving`.
            last_progress: As in :meth:`leaving`.
            final: As in :meth:`leaving`.
        """

    def extra_share(self, decay_steps: int, steps_left: int | None = None) -> float:
        """How many more structures than needed are enrolled, as a share of those needed.

        0 where nothing of it would come back.

        Args:
            decay_steps: ``N``.
            steps_left: For how many steps structures may still be released; None for enough.
        """


@dataclass(frozen=True)
class Thresholds:
    """Releases what resists consistently and wins back much of its length; see :class:`Rectify`.

    Attributes:
        t_rate: Threshold on ``c_rate``.
        t_len: Threshold on ``c_len``.
        warm_up: Share of a decay during which nothing is released.
    """

    t_rate: float
    t_len: float
    warm_up: float

    def leaving(
        self,
        statistics: Statistics,
        progress: Tensor,
        last_progress: Tensor,
        *,
        step: int,
        final: bool,
    ) -> Leaving:
        """All that pass both thresholds; see :meth:`Verdict.leaving`."""
        ripe = self.judges(progress, last_progress, final=final) & (statistics.observed > 0)
        resists = (c_rate(statistics) > self.t_rate) & (c_len(statistics) > self.t_len)
        positions = (ripe & resists).nonzero().flatten()
        return Leaving(positions, positions.numel())

    def judges(self, progress: Tensor, last_progress: Tensor, *, final: bool) -> Tensor:
        """All that are past the warm-up; see :meth:`Verdict.judges`."""
        return progress >= self.warm_up

    def extra_share(self, decay_steps: int, steps_left: int | None = None) -> float:
        """None: what leaves is replaced."""
        return 0.0


@dataclass(frozen=True)
class Tournament:
    """Releases, of more than are needed, those that cost the most work; see :class:`Rectify`.

    Attributes:
        extra: Share of those needed that is enrolled on top.
        judge_at: Share of a decay after which it is decided.
    """

    extra: float
    judge_at: float

    def leaving(
        self,
        statistics: Statistics,
        progress: Tensor,
        last_progress: Tensor,
        *,
        step: int,
        final: bool,
    ) -> Leaving:
        """Those judged now, most work first; see :meth:`Verdict.leaving`."""
        now = self.judges(progress, last_progress, final=final) & (statistics.observed > 0)
        positions = now.nonzero().flatten()
        order = torch.sort(statistics.work[positions], descending=True, stable=True).indices
        return Leaving(positions[order], None)

    def judges(self, progress: Tensor, last_progress: Tensor, *, final: bool) -> Tensor:
        """Each once: at the step that crosses ``judge_at``, or at the final one."""
        waiting = last_progress < self.judge_at
        return waiting if final else waiting & (progress >= self.judge_at)

    def extra_share(self, decay_steps: int, steps_left: int | None = None) -> float:
        """``extra``, unless a decay is over before it is judged; see :meth:`Verdict.extra_share`.

        It is judged at its share, or by the last step that may release, if it lasts so long.
        """
        if steps_left is not None and steps_left < 1:
            return 0.0
        judged = (decay_steps - 1) / decay_steps >= self.judge_at
        return self.extra if judged or (steps_left or decay_steps) < decay_steps else 0.0
