"""Who decides: the one protocol of the library, which every host implements to bring its choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from decayprune.method.lifecycle import LifecycleState


class Selection(NamedTuple):
    """What a selector decided.

    Attributes:
        ids: Structures that start to decay now, shape ``(n,)``; on the CPU, nobody waits for them.
        scores: Raw scores of all structures to remember, shape ``(S,)``, or None.
        cooldowns_ended: Structures whose cool-down was cut short, because nothing else was left;
            None or empty if there are none.
    """

    ids: Tensor
    scores: Tensor | None = None
    cooldowns_ended: Tensor | None = None


class Selector(Protocol):
    """Decides which structures start to decay; everything else is the pruner's."""

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Selection | None:
        """Structures that start to decay at this step, or None.

        Args:
            state: Where every structure stands, after this step's releases.
            step: The optimizer step just taken; the first is 1.
            parameters: By name, with their gradients.
            released: Whether something was released at this step and has to be replaced.
        """

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Those of ``ids``, the first preferred, that may be released with the target still met.

        Args:
            state: Where every structure stands.
            step: The optimizer step just taken.
            ids: Decaying structures, the first to be released in front, on the CPU.
        """

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether nothing will ever be selected again if nothing is released."""
