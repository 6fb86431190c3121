"""Values of frozen parameters that decay with a width: a table of positions, added to the stream.

What is released regrows by training, and a frozen parameter is not trained: it gets its values
back. So they are kept from the first decay on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Frozen:
    """What the frozen ones of some parameters were before anything decayed.

    Args:
        parameters: By name.

    Attributes:
        values: By name; empty as long as nothing has decayed.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = {n: p for n, p in parameters.items() if not p.requires_grad}
        self.values: dict[str, Tensor] = {}

    def keep(self) -> None:
        """Something is about to decay."""
        if not self.values:
            self.values = {n: p.detach().clone() for n, p in self.parameters.items()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Plain tensors under ``frozen``; nothing where nothing is kept."""
        return {"frozen": dict(self.values)} if self.values else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, among other things.

        Args:
            state: Older ones have no such values: none are kept then.

        Raises:
            ValueError: They are those of other parameters.
        """
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        found: Mapping[str, Tensor] = state.get("frozen", {})
        if found and {name: value.shape for name, value in found.items()} != shapes:
            raise ValueError(
                f"This pruner state keeps the values of frozen parameters: {_told(found)}. Those "
                f"of this model are: {_told(self.parameters)}. Freeze the same ones before the "
                "pruner is built."
            )
        self.values = {n: v.detach().to(self.parameters[n], copy=True) for n, v in found.items()}


def _told(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes."""
    return ", ".join(f"{n} {tuple(t.shape)}" for n, t in sorted(tensors.items())) or "none"
