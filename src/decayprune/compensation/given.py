"""Batches that were handed over, kept until the round that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decayprune.structures.example import ExampleInputs


class GivenBatches:
    """Batches to learn from again at a step: by then the model is another one.

    Args:
        batches: Inputs, without labels.
        first: The step: that of the first round.
        step: The step that is being taken.

    Attributes:
        kept: The batches, until somebody has learned from them.
    """

    def __init__(
        self, batches: Sequence[ExampleInputs], *, first: int, step: Callable[[], int]
    ) -> None:
        self.kept = list(batches)
        self._first, self._step = first, step

    def near(self, step: int) -> bool:
        """Whether what passes at a step is kept: nothing is."""
        return False

    def due(self) -> bool:
        """Whether the step is there, and nobody has learned from them since."""
        return bool(self.kept) and self._step() >= self._first

    def close(self) -> None:
        """Let go of them."""
        self.kept.clear()

    def state_dict(self) -> dict[str, Any]:
        """What is still to be learned from."""
        return {"kept": list(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.kept = list(state["kept"])
