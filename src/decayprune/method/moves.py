"""What happened to structures, kept as tensors until somebody reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from decayprune.method.lifecycle import Event
from decayprune.structures.structure_map import StructureMap


@dataclass(frozen=True, eq=False)
class Moves:
    """Structures that make the same move at the same step. An :class:`Event` each, when read.

    Attributes:
        step: Optimizer step at which it happened.
        kind: The move.
        structures: The map that the numbers belong to.
        ids: Structures, shape ``(n,)``.
        figures: ``c_rate``, ``c_len`` and ``work`` of each, shape ``(n, 3)``; None where a decay
            starts, or nobody watched it.
    """

    step: int
    kind: Literal["decay", "release", "prune"]
    structures: StructureMap
    ids: Tensor
    figures: Tensor | None = None

    def events(self) -> list[Event]:
        """One event for each structure, in order."""
        ids = self.ids.cpu()
        groups = self.structures.group_of[ids].tolist()
        layers = [self.structures.groups[group].layer for group in groups]
        places = self.structures.index[ids].tolist()
        if self.figures is None:
            rows: list[list[float | None]] = [[None] * 3] * len(groups)
        else:
            rows = self.figures.tolist()
        return [
            Event(self.step, self.kind, structure, layer, place, *row)
            for structure, layer, place, row in zip(ids.tolist(), layers, places, rows, strict=True)
        ]
