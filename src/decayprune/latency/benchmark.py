"""Is the smaller model really faster? Two models timed side by side in one process.

Runs of both models are interleaved, so that a machine that slows down slows both, and medians are
reported beside the ratio of their multiply-accumulates: that ratio is the speed-up to hope for.
Image models are timed in channels-last memory format as well, any model compiled on request, and
the widths that suit this machine are looked for.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from decayprune.latency import widths
from decayprune.structures.example import arguments


@dataclass(frozen=True)
class Latency:
    """Median times of two models on the same inputs.

    Attributes:
        before_ms: One forward pass of the first model, in milliseconds.
        after_ms: One forward pass of the second model.
        macs_before: Multiply-accumulates of the first model for the whole batch.
        macs_after: Multiply-accumulates of the second model for the whole batch.
        batch_size: Size of the first dimension of the inputs.
        runs: Timed runs of each model.
        threads: Threads torch used.
        device: What it ran on.
        channels_last: The two medians in channels-last memory format; None for other inputs.
        compiled: The two medians under ``torch.compile``, in the faster format; None unless asked.
        round_to: Multiple that makes widths fast on this machine, for the pruner's ``round_to``;
            None if the first model has no plain convolution or linear layer.
        flushes_denormals: Whether numbers below the normal range count as zero. They are slow on
            many processors: see ``torch.set_flush_denormal``.
    """

    before_ms: float
    after_ms: float
    macs_before: int
    macs_after: int
    batch_size: int
    runs: int
    threads: int
    device: str
    channels_last: tuple[float, float] | None = None
    compiled: tuple[float, float] | None = None
    round_to: int | None = None
    flushes_denormals: bool = False

    @property
    def memory_format(self) -> str:
        """The faster format for the second model: ``"contiguous"`` or ``"channels_last"``."""
        faster = self.channels_last is not None and self.channels_last[1] < self.after_ms
        return "channels_last" if faster else "contiguous"

    @property
    def speedup(self) -> float:
        """Time before divided by time after; above 1 the second model is faster."""
        return self.before_ms / self.after_ms

    @property
    def ideal(self) -> float:
        """Multiply-accumulates before divided by after: the speed-up if only they counted."""
        return self.macs_before / max(self.macs_after, 1)

    def to_dict(self) -> dict[str, Any]:
        """All figures, with the two ratios and the format, as plain values."""
        ratios = {"speedup": self.speedup, "ideal": self.ideal}
        return {**asdict(self), **ratios, "memory_format": self.memory_format}

    def to_json(self) -> str:
        """The same as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        return (
            f"{self.before_ms:.2f} ms -> {self.after_ms:.2f} ms, {self.speedup:.2f}x faster "
            f"(MACs alone would give {self.ideal:.2f}x); batch {self.batch_size}, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.device}, "
            f"median of {self.runs}" + "".join(f"\n{line}" for line in self._details())
        )

    def _details(self) -> list[str]:
        lines = []
        for name, pair in (("channels last", self.channels_last), ("compiled", self.compiled)):
            if pair is not None:
                ratio = pair[0] / pair[1]
                lines.append(f"{name}: {pair[0]:.2f} ms -> {pair[1]:.2f} ms, {ratio:.2f}x faster")
        denormals = "flushed to zero" if self.flushes_denormals else "computed"
        remarks = [f"denormals are {denormals}"]
        if self.channels_last is not None:
            remarks.append(f"fastest in {self.memory_format.replace('_', ' ')} format")
        if self.round_to is not None:
            remarks.append(f"prune with round_to={self.round_to}")
        return [*lines, "On this machine: " + ", ".join(remarks) + "."]


def cpu_name() -> str:
    """The processor's name as its maker writes it, or the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _first_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    args, kwargs = arguments(value)
    for item in (*args, *kwargs.values()):
        if isinstance(item, Tensor):
            return item
    raise TypeError("benchmark() times models on example_inputs that hold a tensor; found none.")


def _caller(model: nn.Module, inputs: Any) -> Callable[[], object]:
    args, kwargs = arguments(inputs)
    return lambda: model(*args, **kwargs)


def _macs(call: Callable[[], object], name: str) -> int:
    # In inference mode torch 2.4 does not split linear layers into the products that are counted.
    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            call()
        except Exception as error:  # whatever a forward() raises
            raise ValueError(
                f"{name} does not run on example_inputs: {type(error).__name__}: "
                f"{str(error).strip().rstrip('.')}. Pass one batch as both models take it."
            ) from error
    return int(counter.get_total_flops()) // 2


def _time(call: Callable[[], object], repeats: int, synchronize: Callable[[], None]) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats * 1000


def benchmark(
    model_a: nn.Module,
    model_b: nn.Module,
    example_inputs: Any,
    *,
    runs: int = 30,
    min_run_ms: float = 5.0,
    compiled: bool = False,
) -> Latency:
    """Time two models on the same inputs, in evaluation mode, without gradients.

    Args:
        model_a: The model before.
        model_b: The model after.
        example_inputs: A tensor, or a tuple or dict of arguments; one batch of the size to time.
        runs: Timed runs of each model, alternating.
        min_run_ms: A run repeats the forward pass until it lasts about this long, so that the
            clock's and the scheduler's grain do not show.
        compiled: Time both under ``torch.compile``, too; compiling may take a minute.

    Returns:
        The medians, and what they recommend. Training modes are restored.

    Raises:
        TypeError: The inputs are none, or hold no tensor.
        ValueError: ``runs`` is less than 1, or a model does not run on the inputs.
    """
    if runs < 1:
        raise ValueError(f"benchmark() needs runs of at least 1; found {runs!r}.")
    example = _first_tensor(example_inputs)
    race = Race(runs, min_run_ms, torch.cuda.synchronize if example.is_cuda else lambda: None)
    models = (model_a, model_b)
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        model_a.eval(), model_b.eval()
        with torch.inference_mode():
            calls = [_caller(model, example_inputs) for model in models]
            macs = [_macs(call, n) for n, call in zip(("model_a", "model_b"), calls, strict=True)]
            plain = race.medians(calls)
            last, last_calls = None, calls
            if example.dim() == 4:
                last_calls = [_channels_last(model, example_inputs) for model in models]
                last = race.medians(last_calls)
            faster = last is not None and last[1] < plain[1]
            layer = widths.busiest(model_a, calls[0])
            unit = None if layer is None else widths.round_to(*layer, race.alone)
        with torch.no_grad():  # the compiler does not take inference tensors
            quick = [_compiled(m, example_inputs, faster) for m in models] if compiled else None
            compiled_times = None if quick is None else race.medians(quick)
    finally:
        for module, mode in modes:
            module.training = mode
    return Latency(
        before_ms=plain[0],
        after_ms=plain[1],
        macs_before=macs[0],
        macs_after=macs[1],
        batch_size=example.shape[0] if example.dim() else 1,
        runs=runs,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(example.device) if example.is_cuda else cpu_name(),
        channels_last=last,
        compiled=compiled_times,
        round_to=unit,
        flushes_denormals=flushes_denormals(),
    )


def flushes_denormals() -> bool:
    """Whether this thread counts numbers below the normal range as zero."""
    return float(torch.tensor([1e-39]) * torch.tensor([0.5])) == 0


@dataclass(frozen=True)
class Race:
    """How calls are timed against each other.

    Attributes:
        runs: Timed runs of each call.
        min_run_ms: A run repeats its call until it lasts about this long.
        synchronize: Waits for the device.
    """

    runs: int
    min_run_ms: float = 5.0
    synchronize: Callable[[], None] = lambda: None

    def medians(self, calls: Sequence[Callable[[], object]]) -> tuple[float, float]:
        """Median milliseconds of two calls that take turns."""
        once = [min(_time(call, 1, self.synchronize) for _ in range(3)) for call in calls]
        repeats = [max(1, round(self.min_run_ms / max(t, 1e-6))) for t in once]
        times: list[list[float]] = [[], []]
        for run in range(self.runs):
            # Who goes first alternates too: a warm cache favours the second.
            for side in (0, 1) if run % 2 == 0 else (1, 0):
                times[side].append(_time(calls[side], repeats[side], self.synchronize))
        return statistics.median(times[0]), statistics.median(times[1])

    def alone(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call: the best of a few runs."""
        once = min(_time(call, 1, self.synchronize) for _ in range(3))
        repeats = max(1, round(self.min_run_ms / max(once, 1e-6)))
        return min(_time(call, repeats, self.synchronize) for _ in range(min(self.runs, 5)))


def _channels_last(model: nn.Module, inputs: Any) -> Callable[[], object]:
    """A copy of a model, and inputs, in channels-last memory format."""
    return _caller(_in_channels_last(copy.deepcopy(model)), tree_map(_in_channels_last, inputs))


def _in_channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.to(memory_format=torch.channels_last)
    if isinstance(value, nn.Module):
        return value.to(memory_format=torch.channels_last)
    return value


def _compiled(model: nn.Module, inputs: Any, channels_last: bool) -> Callable[[], object]:
    model = copy.deepcopy(model)
    if channels_last:
        model, inputs = _in_channels_last(model), tree_map(_in_channels_last, inputs)
    call = _caller(cast("nn.Module", torch.compile(model)), inputs)
    call()
    return call
