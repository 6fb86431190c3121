"""Batches that are kept until the last round that learns from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from decayprune.structures.example import ExampleInputs


class KeptBatches:
    """Batches to learn from at some steps, at each anew: by then the model is another one.

    Args:
        batches: Inputs, without labels.
        rounds: The steps: those at which rounds begin.
        step: The step that is being taken.
        limit: How many are kept, the last ones; all if left out.

    Attributes:
        kept: The batches, the oldest first, until the last round has learned from them.
    """

    def __init__(
        self,
        batches: Iterable[ExampleInputs],
        *,
        rounds: Iterable[int],
        step: Callable[[], int],
        limit: int | None = None,
    ) -> None:
        self.kept: deque[ExampleInputs] = deque(batches, maxlen=limit)
        self._rounds, self._step = sorted(rounds), step

    def near(self, step: int) -> bool:
        """Whether what passes at a step is kept: nothing is."""
        return False

    def due(self) -> bool:
        """Whether a round begins that has not learned from them."""
        return bool(self._rounds) and self._step() >= self._rounds[0]

    def learned(self) -> None:
        """A round has: wait for the next one, or let go of them."""
        self._rounds = [one for one in self._rounds if one > self._step()]
        if not self._rounds:
            self.close()

    def close(self) -> None:
        """Let go of them."""
        self.kept.clear()
        self._rounds.clear()

    def state_dict(self) -> dict[str, Any]:
        """The rounds that are still to learn, and what is kept for them."""
        return {"rounds": list(self._rounds), "kept": list(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.close()
        self._rounds = list(state["rounds"])
        self.kept.extend(state["kept"])
