"""How long a model will take at widths it does not have yet, as a share of its time now.

What layers compute and hand on gives an estimate (:class:`.Hardware`), and it is bent to what is
measured: copies of the model are cut and timed, as a whole and beside the dense one, at narrow
widths and where a budget leads to (:meth:`LatencyModel.refine`). So the estimate holds where it
decides, whatever the machine makes of overheads, caches and odd widths; layers that are timed one
by one know nothing of those. Each model counts as it will be deployed, in the memory format it is
faster in, as in :func:`decayprune.benchmark`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.cost import CostModel
from decayprune.latency.bend import Bend
from decayprune.latency.form import Form, eager
from decayprune.latency.race import Call, Race, fastest
from decayprune.structures.example import ExampleInputs, random_state_kept
from decayprune.structures.ranks import shared
from decayprune.structures.structure_map import StructureMap
from decayprune.structures.twin import twin
from decayprune.surgery.cut import cut
from decayprune.surgery.undo import Undo

Timer = Callable[[Sequence[Call], Sequence[Call], torch.device], float]
"""Variants of a model after and before it was cut, and where they run -> ratio of their times."""

_NARROW = 8  # the first copy keeps one in so many
_REFINED = 5  # times the widths that a budget leads to are measured, at most
_EXACT = 0.02  # error of an estimate that holds


def raced(after: Sequence[Call], before: Sequence[Call], device: torch.device) -> float:
    """Time of one model over that of another, each in its faster variant.

    Five rounds at least, and more for up to ten seconds: somebody waits for the pruner.

    Args:
        after: Variants of the first model.
        before: Variants of the second.
        device: Where they run.
    """
    race = Race.on(device, 5, min_run_ms=20.0, seconds=10.0)
    times = race.times([*before, *after], len(before))
    old, new = fastest(times[: len(before)]), fastest(times[len(before) :])
    return statistics.median(new) / max(statistics.median(old), 1e-9)


class LatencyModel:
    """Time of one forward pass on the example inputs, as a share of the dense model's.

    In a data-parallel run the first process measures, and tells the others, so that all decide
    alike.

    Args:
        model: Twins of it are cut and timed, in evaluation mode.
        structures: Its structures.
        example_inputs: The batch to time.
        cost: Of the dense model.
        timer: Compares two models.
        form: How it will be run; None: as torch runs it on the device it is on.

    Raises:
        Exception: What the form raises, if it cannot run the model.
    """

    def __init__(
        self,
        model: nn.Module,
        structures: StructureMap,
        example_inputs: ExampleInputs,
        cost: CostModel,
        timer: Timer = raced,
        *,
        form: Form | None = None,
    ) -> None:
        self._model, self._structures, self._inputs = model, structures, example_inputs
        self._cost, self._timer = cost, timer
        self._form = form or eager(next(model.parameters()).device)
        self._dense: list[Call] = []  # while there is something to measure
        self.macs_per_value = self._form.hardware.macs_per_value
        narrow = -(-cost.sizes // _NARROW)
        share = shared(partial(self._timed, narrow))
        self.bend = Bend().through(self._unbent(narrow), share)

    def __call__(self, kept: Tensor) -> float:
        """Estimated share of the dense model's time.

        Args:
            kept: Structures that stay in each group, shape ``(G,)``.
        """
        return self.bend(self._unbent(kept))

    def refine(self, choose: Callable[[], Tensor]) -> None:
        """Measure the model at widths that the estimate leads to, until that holds there.

        What holds is not bent any more, and so goes on leading to widths that were measured: those
        beside them may be faster or slower by more than that.

        Args:
            choose: Says which widths they are now, shape ``(G,)``.
        """
        for _ in range(_REFINED):
            kept = choose()
            estimate, share = self(kept), shared(partial(self._timed, kept))
            if abs(share / max(estimate, 1e-9) - 1) < _EXACT:
                break
            self.bend = self.bend.through(self._unbent(kept), share)
        self._dense.clear()

    def _timed(self, kept: Tensor) -> float:
        narrow = twin(self._model)  # thrown away, so nothing has to be undone
        cut(Undo(), narrow, self._structures, self._gone(kept))
        self._dense = self._dense or self._form.variants(self._model, self._inputs)
        after = self._form.variants(narrow, self._inputs)
        torch.clear_autocast_cache()  # of weights as wide as they were
        with torch.inference_mode(), random_state_kept(self._model):
            return self._timer(after, self._dense, self._form.device)

    def _gone(self, kept: Tensor) -> Tensor:
        """Some structures to leave, so that as many stay in each group; bool, shape ``(S,)``."""
        group_of = self._structures.group_of
        start = torch.tensor([group.start for group in self._structures.groups], device="cpu")
        place = torch.arange(group_of.numel(), device="cpu") - start[group_of]
        return place >= kept[group_of]

    def _unbent(self, kept: Tensor) -> float:
        """Share of the dense model's work."""
        return self._work(kept) / max(self._work(self._cost.sizes), 1.0)

    def _work(self, kept: Tensor) -> float:
        """Multiply-accumulates, and what takes as long as they would."""
        return self._cost.macs(kept) + self.macs_per_value * self._cost.values(kept)

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """What was measured, as plain numbers and lists."""
        return {"macs_per_value": self.macs_per_value, "bend": self.bend.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        """Take up what another process measured for the same model.

        Args:
            state: What :meth:`state_dict` gave. Where it holds a table of layers, as it once did,
                what this process has measured stays.

        Raises:
            ValueError: It is damaged.
        """
        if isinstance(state, dict) and "layers" in state:
            return
        if not isinstance(state, dict) or not isinstance(state.get("macs_per_value"), float | int):
            raise ValueError(
                "The latency measurements of this pruner state are damaged: macs_per_value and "
                "bend were expected. Load a state that state_dict() returned, or start anew."
            )
        self.bend = Bend.from_state_dict(state.get("bend"))
        self.macs_per_value = float(state["macs_per_value"])
