"""Writes down what a pruner does while it works: its events, and how decaying structures shrink."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from decayprune.app.run.methods import Pruning
from decayprune.app.run.runfolder import RunFolder

_STRUCTURES, _POINTS = 300, 100  # the report thins them, and shows those that were released


class DecayLog:
    """Appends to ``events.jsonl`` and ``norms.jsonl`` after each step.

    Args:
        folder: Of the run.
        pruner: Watched; nothing is changed in it.
        counts: ``decayed`` and ``released``, counted up here.
    """

    def __init__(self, folder: RunFolder, pruner: Pruning, counts: dict[str, Any]) -> None:
        self._folder, self._pruner, self._counts = folder, pruner, counts
        self._logged = len(pruner.host.events)
        total = pruner.host.structures.num_structures
        # Structures of one layer are numbered in a row: a stride shows every layer.
        self._stride = max(1, total // _STRUCTURES)
        self._every = max(1, pruner.schedule.decay_steps // _POINTS)

    def write(self, step: int) -> None:
        """Log what happened in step ``step`` of the run."""
        fresh = self._pruner.host.events[self._logged :]
        self._logged += len(fresh)
        rows = []
        for event in fresh:
            rows.append(asdict(event) | {"step": step})
            name = {"decay": "decayed", "release": "released"}.get(event.kind)
            if name:
                self._counts[name] = self._counts.get(name, 0) + 1
        self._folder.append("events.jsonl", rows)
        if step % self._every == 0:
            self._folder.append("norms.jsonl", self._norms(step))

    def _norms(self, step: int) -> list[dict[str, float]]:
        state = self._pruner.host.lifecycle
        ids = state.decaying[state.decaying % self._stride == 0]
        columns = (ids, state.length[ids], state.start_length[ids])
        return [
            {"step": step, "structure": structure, "length": length, "start": start}
            for structure, length, start in zip(*(c.tolist() for c in columns), strict=True)
        ]
