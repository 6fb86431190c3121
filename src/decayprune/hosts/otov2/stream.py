"""A tournament without rounds: the rule by which DHSPG releases what it caught.

Structures are caught one by one. Each is compared with every structure judged before it, and
released, and replaced, if it is among the costliest so far. Source: ours.
"""

from __future__ import annotations

from torch import Tensor

from decayprune.method.rectify import Leaving, Statistics, Tournament


class Stream:
    """The tournament, as a stream.

    Released are those among the costliest ``extra / (1 + extra)`` of all judged so far. That is
    more than this share of all where those caught late resist more. After ``stop_step`` nothing is
    replaced, and what the target can spare is released, the costliest first.

    Args:
        rule: Who is judged when, and ``extra``.
        stop_step: Last step at which what leaves is replaced.

    Attributes:
        judged: Work of every structure judged so far.
    """

    def __init__(self, rule: Tournament, stop_step: int) -> None:
        self._rule, self._stop = rule, stop_step
        self.judged: list[float] = []

    def leaving(
        self,
        statistics: Statistics,
        progress: Tensor,
        last_progress: Tensor,
        *,
        step: int,
        final: bool,
    ) -> Leaving:
        """Who leaves at this step; see :meth:`decayprune.method.rectify.Verdict.leaving`."""
        found = self._rule.leaving(statistics, progress, last_progress, step=step, final=final)
        if step > self._stop:
            return found
        works = statistics.work[found.order].tolist()
        self.judged += works
        share = self._rule.extra / (1 + self._rule.extra)
        best = sorted(self.judged, reverse=True)[: int(len(self.judged) * share)]
        return Leaving(found.order, sum(work >= best[-1] for work in works) if best else 0)

    def judges(self, progress: Tensor, last_progress: Tensor, *, final: bool) -> Tensor:
        """Who is of an age to be judged: as of the tournament."""
        return self._rule.judges(progress, last_progress, final=final)

    def extra_share(self, decay_steps: int, steps_left: int | None = None) -> float:
        """What is enrolled on top where the target is completed at once: as of the tournament."""
        return self._rule.extra_share(decay_steps, steps_left)
