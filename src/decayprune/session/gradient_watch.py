"""Whether the gradients at hand are those of the step that was taken.

A pruner reads gradients between ``optimizer.step()`` and ``zero_grad()``. Called anywhere else it
would read those of another step, or zeros, and nothing would tell. One gradient stands for all of
them: the object and torch's count of the writes to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class GradientWatch:
    """Notices that gradients were written to, or replaced.

    Args:
        parameters: Whose gradients are read.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        # The smallest will do, and is held until the next step at least expense.
        self._parameters = sorted(parameters, key=Tensor.numel)
        self._seen: tuple[Tensor, int] | None = None

    def note(self) -> None:
        """The optimizers have stepped with the gradients that there are now."""
        grad = self._grad()
        self._seen = None if grad is None else (grad, grad._version)

    def changed(self) -> Tensor | None:
        """A gradient that is not the one of the last step any more, if there is one."""
        grad = self._grad()
        if self._seen is None or grad is None:
            return None
        same = grad is self._seen[0] and grad._version == self._seen[1]
        return None if same else grad

    def _grad(self) -> Tensor | None:
        return next((p.grad for p in self._parameters if p.grad is not None), None)
