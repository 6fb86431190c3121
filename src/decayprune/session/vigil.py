"""What goes wrong beside a training loop, noticed at the step where it does.

A pruner that is called in the wrong place gets no error from anybody: gradients of another step are
gradients too, and weights that another optimizer moves move. So it is looked for, at a cost that a
step does not feel: objects and torch's own counts of writes, and nothing is asked of a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from decayprune.session.gradient_watch import GradientWatch


class Vigil:
    """Watches gradients, weights and the order of calls.

    Args:
        name: What the user calls the host in a loop, for messages.
        model: The model.
        parameters: Those that the method moves, by name.
        optimizers: Whose steps are followed.
        called: Whether the loop calls ``step()`` of the host.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        called: bool,
    ) -> None:
        self._name, self._model = name, model
        self._parameters, self._optimizers = parameters, optimizers
        follows = f" {name}.step();" if called else ""
        self._order = (
            f"The order is: loss.backward(); optimizer.step();{follows} optimizer.zero_grad()"
        )
        self._gradients = GradientWatch(parameters.values())
        self.followed()

    def stepped(self) -> None:
        """The optimizers have stepped."""
        self._gradients.note()

    def followed(self) -> None:
        """The step was followed, or a state was loaded: the weights are known as they are now."""
        self._written, self._suspicious = self._writes(), False

    def _writes(self) -> int:
        """Torch's count of in-place writes to the parameters."""
        return sum(parameter._version for parameter in self._parameters.values())

    def suspect(self, *, called: bool) -> None:
        """Somebody else may have written to the weights; twice in a row it is another optimizer.

        Args:
            called: An optimizer was called and had to skip its step.

        Raises:
            RuntimeError: It is.
        """
        writes = self._writes()
        moved, self._written = writes != self._written and not called, writes
        # Once may be weights that were loaded, or averages that came and went.
        if moved and self._suspicious:
            names = " and ".join(type(one).__name__ for one in self._optimizers)
            raise RuntimeError(
                f"The weights move, but {names}, which this {self._name} was built with, does not "
                f"step: another optimizer trains the model. Build the {self._name} with the "
                "optimizer that steps (save state_dict() of the old one and load it into the new "
                "one to go on)."
            )
        self._suspicious = moved

    def check_gradients(self, *, needed: bool, over: Callable[[], bool]) -> None:
        """Raise if the gradients are not those of the step that was taken.

        Args:
            needed: Whether there have to be some.
            over: Whether all is done, so that gradients are of no interest any more.

        Raises:
            RuntimeError: They have changed since, or are needed and gone.
        """
        changed = self._gradients.changed()
        if changed is not None and bool(changed.any()):
            raise RuntimeError(
                f"The gradients have changed since optimizer.step(), so that {self._name}.step() "
                "would read those of another step, and optimizer.step() revive what it zeroes. "
                f"{self._order}"
            )
        if needed and self.has_gradients("step", over) and changed is not None and not over():
            self._refuse("step", "every .grad is zero")

    def has_gradients(self, caller: str, over: Callable[[], bool]) -> bool:
        """Whether there are gradients; without them it is an error, unless all is done.

        Args:
            caller: Method of the host that needs them.
            over: Whether all is done.

        Raises:
            RuntimeError: There are none.
        """
        if any(parameter.grad is not None for parameter in self._model.parameters()):
            return True
        if not over():
            self._refuse(caller, "every .grad is None")
        return False

    def _refuse(self, caller: str, found: str) -> None:
        raise RuntimeError(
            f"{self._name}.{caller}() needs the gradients of this step, and {found}: was "
            f"zero_grad() called first? {self._order}"
        )
