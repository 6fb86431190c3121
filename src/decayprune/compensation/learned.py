"""What a pruner has learned on calibration data, once it has seen some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from decayprune.compensation.calibration import Calibration, calibrate
from decayprune.compensation.consumers import consumers
from decayprune.compensation.sensitivity import sensitivity
from decayprune.structures.example import ExampleInputs
from decayprune.structures.structure_map import StructureMap


class Learned:
    """What layers read, and what the outputs feel of each structure if that ranks them.

    Args:
        model: Nothing of it changes.
        structures: Of the model.
        feels: Whether the second is wanted as well.

    Attributes:
        calibration: What layers read; nothing yet before :meth:`learn`.
        worth: Of each residual branch, shape ``(B,)``, filled in by who prunes branches; or None.

    Raises:
        ValueError: There is no layer to learn of.
    """

    def __init__(self, model: nn.Module, structures: StructureMap, *, feels: bool) -> None:
        self._model, self._structures, self._feels = model, structures, feels
        readers = consumers(model, structures)
        if not readers:
            raise ValueError(
                "calibrate finds no layer to look at that reads what may leave (grouped "
                "convolutions, and weights that are used by hand, are not looked at). Prune with "
                "dp.DecayPruner and without calibrate: structures are ranked by their norms then."
            )
        self.calibration = Calibration(readers, {})
        self._felt: Tensor | None = None
        self.worth: Tensor | None = None

    def learn(self, batches: Iterable[ExampleInputs]) -> None:
        """Run the model on batches; all is learned, or nothing.

        Args:
            batches: As for :func:`~decayprune.compensation.calibration.calibrate`; read twice.

        Raises:
            ValueError: There is none, a layer has read something that is not finite, or the
                outputs have no derivative.
        """
        read = calibrate(self._model, self._structures, batches)
        if self._feels:
            self._felt = sensitivity(self._model, self._structures, batches, read)
        self.calibration.take(read.moments)

    def importance(self, structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
        """What ranks structures: what the outputs feel of them, or else what layers read.

        The second also in groups of which the outputs feel nothing at all: what a detector
        proposes, or discards, has no derivative, and no order of zeros is one.
        """
        if self._felt is None:
            return self.calibration.importance(structures, parameters)
        scores = self.calibration.or_norms(self._felt, structures, parameters)
        parts = (slice(group.start, group.stop) for group in structures.groups)
        if unfelt := [part for part in parts if not bool(scores[part].any())]:
            read = self.calibration.importance(structures, parameters)
            for part in unfelt:
                scores[part] = read[part]
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Moments by the layer's name, and of the rest what is there, else None."""
        moments = self.calibration.state_dict()
        return {
            "moments": moments,
            "sensitivity": self._felt if moments else None,
            "branches": self.worth if moments else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: It was learned on another model, or by who wanted to know something else.
        """
        learned, size = bool(state["moments"]), self._structures.num_structures
        felt = _checked(state, "sensitivity", size if learned and self._feels else 0)
        worth = _checked(state, "branches", len(self._structures.branches) if learned else 0)
        self.calibration.load_state_dict(state["moments"])
        self._felt, self.worth = felt, worth


def _checked(state: Mapping[str, Any], name: str, size: int) -> Tensor | None:
    """One number for each of so many, on the CPU; None for none of them.

    Raises:
        ValueError: There are others.
    """
    value = state[name]
    found = tuple(value.shape) if isinstance(value, Tensor) else ()
    if found != ((size,) if size else ()):
        raise ValueError(
            f"This state is damaged: what is under {name} in it is not that of this model."
        )
    return value.cpu() if size else None
