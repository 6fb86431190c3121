"""When structures are selected and how long they decay: rounds of a run, in optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When structures are selected, and how long each decays. All in optimizer steps.

    Round ``i = 0 .. rounds-1`` selects at step ``start + i * (stop - start) / rounds`` for the
    budget ``1 - (1 - target) * (i + 1) / rounds``. From ``stop`` on nothing is released, so the
    budget is met at the latest ``decay_steps`` after it.

    Attributes:
        start: Step of the first round.
        stop: End of the last round.
        rounds: In how many instalments the budget is reached.
        decay_steps: ``N``, steps from a structure's selection to its zero; 1 is an abrupt cut.

    Raises:
        TypeError: A value is no whole number.
        ValueError: A value is out of range.
    """

    start: int = 0
    stop: int
    rounds: int = 1
    decay_steps: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, Integral):
                raise TypeError(f"Schedule.{name} is a whole number of steps, found {value!r}.")
        if self.start < 0:
            raise ValueError(f"Schedule.start is a step, 0 or later; found {self.start}.")
        if self.stop < self.start:
            raise ValueError(
                f"Schedule.stop must not come before start; found start={self.start}, "
                f"stop={self.stop}."
            )
        if self.rounds < 1:
            raise ValueError(f"Schedule.rounds is at least 1, found {self.rounds}.")
        if self.decay_steps < 1:
            raise ValueError(
                f"Schedule.decay_steps is at least 1 (an abrupt cut), found {self.decay_steps}."
            )

    @classmethod
    def for_run(cls, total_steps: int, *, start: int = 0) -> Schedule:
        """One round at once, each decay a tenth of the run; the rest is left to recover in.

        More rounds, later ones, and longer decays cost more of the steps to recover in than they
        gave back, the more the harder the budget (docs/study.md).

        Args:
            total_steps: Optimizer steps from the pruner's construction to the end of training.
            start: Step of the round: 0 for a trained model. Give a model that is trained from
                scratch its time first, say half of the run.

        Raises:
            ValueError: No step is left from ``start`` on.
        """
        left = total_steps - start
        if left < 1:
            raise ValueError(
                f"Schedule.for_run needs at least 1 step after start={start}, found {left} "
                f"(total_steps={total_steps})."
            )
        decay_steps = max(1, left // 10)
        return cls(start=start, stop=start + decay_steps, decay_steps=decay_steps)

    @classmethod
    def at_once(cls, *, start: int = 0) -> Schedule:
        """One round that is cut as soon as it is selected: no decay, no release.

        For a selection that is made on data (``calibrate=`` of the pruner): what stays takes over
        what leaves, and decays on top of that have cost accuracy (docs/results.md).

        Args:
            start: Step of the round: 0 for a fine-tuned model. If the fine-tuning is still to come,
                some hundred steps into it are better (docs/trained.md, "When").
        """
        return cls(start=start, stop=start, decay_steps=1)

    def begins(self, round_: int) -> int:
        """Step at which a round selects; never before the first optimizer step."""
        return max(1, self.start + round_ * (self.stop - self.start) // self.rounds)

    def rounds_begun(self, step: int) -> int:
        """How many rounds have selected once ``step`` is over."""
        if step < max(1, self.start):
            return 0
        span = self.stop - self.start
        # Round i has begun when i * span // rounds <= step - start.
        begun = ((step - self.start + 1) * self.rounds - 1) // span + 1 if span else self.rounds
        return min(self.rounds, begun)
