"""How long a model will take at widths it does not have yet, from a measured table.

Every plain and depthwise convolution and every linear layer is timed, on the input it gets, at a
few widths; between them times are interpolated (:mod:`.table`). What else the model does (norms,
activations, attention) is the rest of its own measured time. How much of that shrinks with the
activations, and by how much layers in a row differ from layers timed alone, is learnt from one more
measurement, of the model with every width halved for a moment. So the estimate is exact for the
dense model, close to exact where every width is halved, and approximate elsewhere. Where it matters
it is made exact, too: :meth:`LatencyModel.refine` measures the model at the widths that a budget
leads to. All of that in the memory format that the dense model is faster in.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.latency.memory_format import fastest, in_format
from decayprune.latency.table import Grid, LayerKey, Table
from decayprune.latency.widths import Layer, Timer, resized, widths
from decayprune.structures.example import ExampleInputs, quiet
from decayprune.structures.ranks import shared
from decayprune.structures.structure_map import StructureMap
from decayprune.surgery.cut import cut
from decayprune.surgery.undo import Undo

_GRID = (0.125, 0.25, 0.5, 0.75, 1.0)  # shares of each width that are timed
_UNIT = 8  # widths of the grid are multiples of it, as odd ones would make the table jump
_WHOLE = 3  # times the whole model is timed: differences of these times are taken
_REFINED = 3  # times the widths that a budget leads to are measured, at most
_EXACT = 0.01  # error of an estimate that is not worth another measurement
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def wall_clock(call: Callable[[], object]) -> float:
    """Seconds of one call: the best of seven runs of at least a millisecond each."""
    gpu = torch.cuda.is_available()

    def run(repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        if gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    repeats = max(1, round(1e-3 / max(run(1), run(1), 1e-7)))
    return min(run(repeats) for _ in range(7))


@dataclass(frozen=True)
class _Call:
    """One call of a layer: which structures make up its widths, and what it hands on."""

    layer: Layer
    example: Tensor
    inside: Tensor | None  # labels of its input width; None if it is never cut
    outside: Tensor | None
    outputs: int

    @property
    def key(self) -> LayerKey:
        """Calls of equal key take equal time."""
        cut = self.inside is not None, self.outside is not None
        return LayerKey.of(self.layer, self.example, cut)


class LatencyModel:
    """Time of one forward pass on the example inputs, as a function of what is kept.

    In a data-parallel run it is measured by the first process and shared, so that all decide alike.

    Args:
        model: A twin of it is timed, in evaluation mode.
        structures: Its structures.
        example_inputs: The batch to time.
        timer: Takes a function without arguments, gives the time of one call.
    """

    def __init__(
        self,
        model: nn.Module,
        structures: StructureMap,
        example_inputs: ExampleInputs,
        timer: Timer = wall_clock,
    ) -> None:
        self._sizes = torch.tensor([group.size for group in structures.groups], device="cpu")
        self._group_of, self._timer = structures.group_of, timer
        model, run, self.memory_format = fastest(
            model, example_inputs, partial(_ratio, timer=timer)
        )
        with quiet(model):
            calls = _calls(model, structures, run)
            self._keys = [call.key for call in calls]
            self._shares = [(self._counts(c.inside), self._counts(c.outside)) for c in calls]
            self._outputs = torch.tensor([float(call.outputs) for call in calls], device="cpu")
            self.table = shared(lambda: _measure(calls, run, timer))
            self.table = shared(lambda: self._with_rest(model, structures, run, timer))

    def _with_rest(
        self, model: nn.Module, structures: StructureMap, run: Callable[[], object], timer: Timer
    ) -> Table:
        """The table that knows how much of the rest stays whatever is cut.

        That is what the model takes with halved widths.
        """
        kept, table = (self._sizes + 1) // 2, self.table
        undo = Undo()
        try:
            cut(undo, model, structures, self._gone(structures, kept))
            whole = min(timer(run) for _ in range(_WHOLE))
        finally:
            undo.run()
        calls, activations = self._at(kept)
        falls = (table.rest - max(0.0, whole - table.layers_at(calls))) / max(1 - activations, 1e-6)
        table = replace(table, fixed=table.rest - min(max(falls, 0.0), table.rest))
        estimated = table.unbent(calls, activations)
        # Never faster than the sum of its parts, and a clock that shook must not turn the order of
        # two widths around.
        measured = min(max(whole / table.whole, estimated), (1 + estimated) / 2)
        return table.anchored(estimated, measured)

    def _gone(self, structures: StructureMap, kept: Tensor) -> Tensor:
        """Some structures to leave, so that as many stay in each group; bool, shape ``(S,)``."""
        start = torch.tensor([group.start for group in structures.groups], device="cpu")
        place = torch.arange(self._group_of.numel(), device="cpu") - start[self._group_of]
        return place >= kept[self._group_of]

    def refine(
        self,
        model: nn.Module,
        structures: StructureMap,
        example_inputs: ExampleInputs,
        choose: Callable[[], Tensor],
    ) -> None:
        """Measure the model at widths that were chosen by the estimate, until that holds there.

        Args:
            model: A twin of it is cut for a moment, another one is timed beside it.
            structures: Its structures.
            example_inputs: The batch to time.
            choose: Says which widths the estimate leads to, shape ``(G,)``.
        """
        dense, run_dense = in_format(model, example_inputs, self.memory_format)
        other, run = in_format(model, example_inputs, self.memory_format)

        def measured(kept: Tensor) -> float:
            undo = Undo()
            with quiet(dense), quiet(other):
                try:
                    cut(undo, other, structures, self._gone(structures, kept))
                    return _ratio(run, run_dense, self._timer)
                finally:
                    undo.run()

        for _ in range(_REFINED):
            kept = choose()
            estimate = self(kept) / self.table.whole
            share = shared(partial(measured, kept))
            self.table = self.table.anchored(self.table.unbent(*self._at(kept)), share)
            if abs(share / estimate - 1) < _EXACT:
                break

    def _counts(self, labels: Tensor | None) -> tuple[int, Tensor, int]:
        """Fixed indices of a width, indices per structure of each group, and all of them."""
        groups = self._sizes.numel()
        if labels is None:
            return 1, torch.zeros(groups, dtype=torch.int64, device="cpu"), 1
        cut = labels[labels >= 0]
        per_group = torch.bincount(self._group_of[cut], minlength=groups) // self._sizes
        return labels.numel() - cut.numel(), per_group, labels.numel()

    def __call__(self, kept: Tensor) -> float:
        """Estimated time, in the unit of the timer.

        Args:
            kept: Structures that stay in each group, shape ``(G,)``.
        """
        return self.table.at(*self._at(kept))

    def _at(self, kept: Tensor) -> tuple[list[tuple[LayerKey, float, float]], float]:
        """What is left of the widths of each call, and of all activations."""
        shares = [
            [(fixed + float((per_group * kept).sum())) / total for fixed, per_group, total in pair]
            for pair in self._shares
        ]
        calls = [(key, a, b) for key, (a, b) in zip(self._keys, shares, strict=True)]
        left = torch.tensor([out for _, out in shares], device="cpu")
        activations = float((left * self._outputs).sum() / self._outputs.sum().clamp(min=1))
        return calls, activations

    def state_dict(self) -> dict[str, Any]:
        """What was measured, as plain numbers, strings and lists."""
        return self.table.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Take up what another process measured for the same model.

        Args:
            state: What :meth:`state_dict` gave, also in an earlier version.

        Raises:
            ValueError: It is damaged or belongs to another model or other inputs.
        """
        # Until version 0.4 times were those of the format that the model came in.
        plain = {str(key.contiguous()): key for key in self._keys}
        known = isinstance(state, dict) and set(state.get("layers", ())) == set(plain)
        self.table = Table.from_state_dict(
            state, plain if known else {str(key): key for key in self._keys}
        )


def _ratio(after: Callable[[], object], before: Callable[[], object], timer: Timer) -> float:
    """Of two times: the median over turns, so that a machine that slows down slows both."""
    return statistics.median(timer(after) / max(timer(before), 1e-12) for _ in range(_WHOLE))


def _calls(model: nn.Module, structures: StructureMap, run: Callable[[], object]) -> list[_Call]:
    """Every call of a layer that has a table, in the order of the forward pass."""
    cut = {
        (item.name, item.dim): item.structure for item in structures.slices if item.role != "gate"
    }
    found: list[_Call] = []

    def note(name: str, layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
        outside = cut.get((f"{name}.weight", 0))
        inside = cut.get((f"{name}.weight", 1))  # a depthwise one has none of its own
        found.append(_Call(layer, args[0].detach(), inside, outside, output.numel()))

    hooks = [
        module.register_forward_hook(partial(note, name))
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
        and getattr(module, "groups", 1) in (1, module.weight.shape[0])
        and "weight" in module._parameters
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _measure(calls: Sequence[_Call], run: Callable[[], object], timer: Timer) -> Table:
    layers: dict[LayerKey, Grid] = {}
    for call in calls:
        if call.key not in layers:
            layers[call.key] = _grid_of(call, timer)
    whole = min(timer(run) for _ in range(_WHOLE))
    sum_ = sum(layers[call.key](1.0, 1.0) for call in calls)
    # Timed alone, layers may take longer than inside of the model: then they are all of it.
    scale = min(1.0, whole / sum_) if sum_ else 1.0
    rest = max(0.0, whole - scale * sum_)
    return Table(layers, scale=scale, rest=rest, whole=max(whole, 1e-12))


def _grid_of(call: _Call, timer: Timer) -> Grid:
    """Times at pairs of widths."""
    wide_in, wide_out = widths(call.layer)
    ins = _grid(wide_in) if call.inside is not None else [wide_in]
    outs = _grid(wide_out) if call.outside is not None else [wide_out]
    depthwise = getattr(call.layer, "groups", 1) > 1
    times = torch.zeros(len(ins), len(outs), dtype=torch.float64, device="cpu")
    for i, narrow_in in enumerate(ins):
        for j, narrow_out in enumerate(outs):
            width = narrow_out if depthwise else narrow_in
            layer, example = resized(call.layer, call.example, width, narrow_out)
            times[i, j] = timer(partial(layer, example))
    return Grid.measured(ins, outs, times)


def _grid(width: int) -> list[int]:
    """Widths to time: multiples of the unit near the shares, and the width itself."""
    near = {max(1, round(width * share / _UNIT)) * _UNIT for share in _GRID}
    return sorted({w for w in near if w < width} | {width})
