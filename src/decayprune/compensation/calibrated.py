"""What a pruner does with calibration data: it learns, compensates, and takes up both again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decayprune.compensation.compensated import Compensated
from decayprune.compensation.kept import KeptBatches
from decayprune.compensation.learned import Learned
from decayprune.method.selector import Selector
from decayprune.structures.example import ExampleInputs


class Calibrated:
    """A selector whose consumers take over what it picks, and who learns for it, and when.

    Args:
        selector: Who selects.
        learned: What is known by now, or will be.
        learn: Fills that in from batches.
        watching: Who keeps the batches to learn from; None if nothing is left to learn.

    Attributes:
        selector: The same, compensated.
        learned: As given.
    """

    def __init__(
        self,
        selector: Selector,
        learned: Learned,
        learn: Callable[[Sequence[ExampleInputs]], None],
        watching: KeptBatches | None,
    ) -> None:
        self.selector = Compensated(selector, learned.calibration)
        self.learned, self._learn, self._watching = learned, learn, watching

    def follow(self) -> None:
        """Learn, if this is the step for it.

        Raises:
            RuntimeError: Nothing was kept to learn from.
        """
        if self._watching is not None and self._watching.due():
            self._learn(list(self._watching.kept))
            self._watching.learned()

    def keeps(self, step: int) -> bool:
        """Whether batches of a step are kept."""
        return self._watching is not None and self._watching.near(step)

    def close(self) -> None:
        """Let go of the model."""
        if self._watching is not None:
            self._watching.close()

    def state_dict(self) -> dict[str, Any]:
        """What the others give, by what it is about."""
        state = {"compensation": self.selector.state_dict(), "learned": self.learned.state_dict()}
        if self._watching is not None:
            state["watching"] = self._watching.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: It is of another model, or damaged; nothing has changed.
        """
        self.learned.load_state_dict(state["learned"])  # the only one that may refuse
        self.selector.load_state_dict(state["compensation"])
        if self._watching is not None:
            self._watching.load_state_dict(state["watching"])
