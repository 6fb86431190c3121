"""How long a model will take at widths it does not have yet, from a measured table.

Every plain and depthwise convolution and every linear layer is timed, on the input it gets, at a
few widths; between them times are interpolated. What else the model does (norms, activations,
attention) is the rest of its own measured time. How much of that shrinks with the activations, and
by how much layers in a row differ from layers timed alone, is learnt from one more measurement, of
the model with every width halved for a moment. So the estimate is exact for the dense model, close
to exact where every width is halved, and approximate elsewhere: see what
``benchmarks/latency_budget.py`` measured. It errs most where little time is spent in large layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.latency.widths import Layer, Timer, resized, widths
from decayprune.structures.example import ExampleInputs, arguments, quiet
from decayprune.structures.structure_map import StructureMap
from decayprune.structures.twin import twin
from decayprune.surgery.cut import cut
from decayprune.surgery.undo import Undo

_GRID = (0.125, 0.25, 0.5, 0.75, 1.0)  # shares of each width that are timed
_UNIT = 8  # widths of the grid are multiples of it, as odd ones would make the table jump
_WHOLE = 3  # times the whole model is timed: differences of these times are taken
_Table = dict[str, Any]  # shares of both widths, and times[in][out]; plain, so that it is saved
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
    def key(self) -> tuple[Any, ...]:
        """Calls of equal key take equal time."""
        cut = self.inside is not None, self.outside is not None
        example = tuple(self.example.shape), self.example.stride(), self.example.dtype
        return type(self.layer).__name__, self.layer.extra_repr(), *example, *cut


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
        self._sizes = torch.tensor([group.size for group in structures.groups])
        self._group_of = structures.group_of
        args, kwargs = arguments(example_inputs)
        model = twin(model)
        run = partial(model, *args, **kwargs)
        with quiet(model):
            calls = _calls(model, structures, run)
            self.table = _shared(lambda: _measure(calls, run, timer))
        self._keys = [call.key for call in calls]
        self._shares = [(self._counts(c.inside), self._counts(c.outside)) for c in calls]
        self._outputs = torch.tensor([float(call.outputs) for call in calls])
        with quiet(model):
            self.table |= _shared(lambda: self._rest_of(model, structures, run, timer))

    def _rest_of(
        self, model: nn.Module, structures: StructureMap, run: Callable[[], object], timer: Timer
    ) -> dict[str, Any]:
        """How much of the rest stays whatever is cut: what the model takes with halved widths."""
        kept = (self._sizes + 1) // 2
        start = torch.tensor([group.start for group in structures.groups])
        place = torch.arange(self._group_of.numel()) - start[self._group_of]
        undo = Undo()
        try:
            cut(undo, model, structures, place >= kept[self._group_of])
            whole = min(timer(run) for _ in range(_WHOLE))
        finally:
            undo.run()
        layers, activations = self._parts(kept)
        rest, dense = self.table["rest"], self.table["whole"]
        falls = (rest - max(0.0, whole - layers)) / max(1 - activations, 1e-6)
        fixed = rest - min(max(falls, 0.0), rest)
        estimated = (layers + fixed + (rest - fixed) * activations) / dense
        # Never faster than the sum of its parts, and a clock that shook must not turn the order of
        # two widths around.
        measured = min(max(whole / dense, estimated), (1 + estimated) / 2)
        return {"fixed": fixed, "estimated half": estimated, "measured half": measured}

    def _counts(self, labels: Tensor | None) -> tuple[int, Tensor, int]:
        """Fixed indices of a width, indices per structure of each group, and all of them."""
        groups = self._sizes.numel()
        if labels is None:
            return 1, torch.zeros(groups, dtype=torch.int64), 1
        cut = labels[labels >= 0]
        per_group = torch.bincount(self._group_of[cut], minlength=groups) // self._sizes
        return labels.numel() - cut.numel(), per_group, labels.numel()

    def __call__(self, kept: Tensor) -> float:
        """Estimated time, in the unit of the timer.

        Args:
            kept: Structures that stay in each group, shape ``(G,)``.
        """
        layers, activations = self._parts(kept)
        fixed, dense = self.table["fixed"], self.table["whole"]
        share = (layers + fixed + (self.table["rest"] - fixed) * activations) / dense
        return float(dense * self._corrected(share))

    def _corrected(self, share: float) -> float:
        """A share of the dense time, bent up to where the model of halved widths was measured."""
        estimated = float(self.table["estimated half"])
        measured = float(self.table["measured half"])
        if not 0 < estimated < 1:
            return share
        if share <= estimated:
            return share / estimated * measured
        return measured + (share - estimated) / (1 - estimated) * (1 - measured)

    def _parts(self, kept: Tensor) -> tuple[float, float]:
        """Time of the layers, and the share of the activations that is left."""
        shares = [
            [(fixed + float((per_group * kept).sum())) / total for fixed, per_group, total in pair]
            for pair in self._shares
        ]
        layers = sum(
            _interpolate(self.table["layers"][repr(key)], a, b)
            for key, (a, b) in zip(self._keys, shares, strict=True)
        )
        left = torch.tensor([out for _, out in shares])
        activations = float((left * self._outputs).sum() / self._outputs.sum().clamp(min=1))
        return float(self.table["scale"] * layers), activations


def _calls(model: nn.Module, structures: StructureMap, run: Callable[[], object]) -> list[_Call]:
    """Every call of a layer that has a table, in the order of the forward pass."""
    cut = {(item.name, item.dim): item.structure for item in structures.slices}
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


def _measure(calls: Sequence[_Call], run: Callable[[], object], timer: Timer) -> dict[str, Any]:
    layers: dict[str, _Table] = {}
    for call in calls:
        if repr(call.key) not in layers:
            layers[repr(call.key)] = _grid_of(call, timer)
    whole = min(timer(run) for _ in range(_WHOLE))
    sum_ = sum(layers[repr(call.key)]["times"][-1][-1] for call in calls)
    # Timed alone, layers may take longer than inside of the model: then they are all of it.
    scale = min(1.0, whole / sum_) if sum_ else 1.0
    rest = whole - scale * sum_
    return {"layers": layers, "scale": scale, "rest": rest, "whole": max(whole, 1e-12)}


def _grid_of(call: _Call, timer: Timer) -> _Table:
    """Times at pairs of widths; they never fall with a width, however the clock shook."""
    wide_in, wide_out = widths(call.layer)
    ins = _grid(wide_in) if call.inside is not None else [wide_in]
    outs = _grid(wide_out) if call.outside is not None else [wide_out]
    depthwise = getattr(call.layer, "groups", 1) > 1
    times = torch.zeros(len(ins), len(outs), dtype=torch.float64)
    for i, narrow_in in enumerate(ins):
        for j, narrow_out in enumerate(outs):
            width = narrow_out if depthwise else narrow_in
            layer, example = resized(call.layer, call.example, width, narrow_out)
            times[i, j] = timer(partial(layer, example))
    times = times.cummax(0).values.cummax(1).values
    return {
        "in": [0.0, *(width / wide_in for width in ins)],
        "out": [0.0, *(width / wide_out for width in outs)],
        "times": torch.nn.functional.pad(times, (1, 0, 1, 0)).tolist(),  # nothing takes no time
    }


def _grid(width: int) -> list[int]:
    """Widths to time: multiples of the unit near the shares, and the width itself."""
    near = {max(1, round(width * share / _UNIT)) * _UNIT for share in _GRID}
    return sorted({w for w in near if w < width} | {width})


def _interpolate(table: _Table, a: float, b: float) -> float:
    """Bilinear between the measured widths, and between them and nothing."""
    (i, x), (j, y) = _place(table["in"], a), _place(table["out"], b)
    low: list[float]
    high: list[float]
    low, high = table["times"][i], table["times"][i + 1]
    return (1 - x) * ((1 - y) * low[j] + y * low[j + 1]) + x * ((1 - y) * high[j] + y * high[j + 1])


def _place(grid: list[float], share: float) -> tuple[int, float]:
    """Index of the grid's interval that a share lies in, and where in it."""
    index = next(i for i in range(len(grid) - 1) if share <= grid[i + 1])
    return index, (share - grid[index]) / (grid[index + 1] - grid[index])


def _shared(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the first process measures, in every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return measure()
    box = [measure() if torch.distributed.get_rank() == 0 else {}]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
