"""Is the smaller model really faster? Two models timed side by side in one process.

Runs of both models are interleaved, so that a machine that slows down slows both, until the ratio
of their times is known within a twentieth; where it does not settle, that is said. Image models are
timed in both memory formats, and each counts in its faster one: a model that is slow in the format
it came in is no baseline. Beside the ratio stands that of the multiply-accumulates, which is the
speed-up to hope for.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from decayprune import notebook
from decayprune.latency import hardware
from decayprune.latency.form import compiled_call
from decayprune.latency.memory_format import formats, in_format
from decayprune.latency.race import Race, fastest, interval, known, paired
from decayprune.latency.widths import Layer, busiest, widths
from decayprune.structures.example import arguments, batch_size, refusal


@dataclass(frozen=True)
class Latency:
    """Median times of two models on the same inputs.

    Attributes:
        before_ms: One forward pass of the first model, in milliseconds, in its faster format.
        after_ms: One forward pass of the second model, in its faster format.
        macs_before: Multiply-accumulates of the first model for the whole batch.
        macs_after: Multiply-accumulates of the second model for the whole batch.
        batch_size: Size of the first dimension of the inputs.
        runs: Timed runs of each model.
        threads: Threads torch used.
        device: What it ran on.
        channels_last: The two medians in channels-last memory format; None for other inputs.
        compiled: The two medians under ``torch.compile``, in the faster format; None unless asked.
        round_to: Multiple that makes widths like those of the busiest layer fast here; None if the
            first model has no plain convolution or linear layer.
        flushes_denormals: Whether numbers below the normal range count as zero. They are slow on
            many processors: see ``torch.set_flush_denormal``.
        contiguous: The two medians in contiguous memory format.
        interval: Where the speed-up lies with a confidence of 95 %; None of too few runs.
        processor_time: Whether the processor's time was taken, as for one thread, and not that on
            the wall: what others do on the machine then hardly counts.
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
    contiguous: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    processor_time: bool = False

    @property
    def memory_format(self) -> str:
        """The faster format for the second model: ``"contiguous"`` or ``"channels_last"``."""
        return self._format(1)

    def _format(self, side: int) -> str:
        plain = self.contiguous or (self.before_ms, self.after_ms)
        faster = self.channels_last is not None and self.channels_last[side] < plain[side]
        return "channels_last" if faster else "contiguous"

    @property
    def settled(self) -> bool:
        """Whether the speed-up is known within a twentieth."""
        return known(self.interval)

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
        ratios = {"speedup": self.speedup, "ideal": self.ideal, "settled": self.settled}
        return {**asdict(self), **ratios, "memory_format": self.memory_format}

    def to_json(self) -> str:
        """The same as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def _repr_html_(self) -> str:
        """The medians, for notebooks."""
        timed = {
            "in the faster format": (self.before_ms, self.after_ms),
            "contiguous": self.contiguous,
            "channels last": self.channels_last,
            "compiled": self.compiled,
        }
        rows = [
            (name, f"{pair[0]:.2f}", f"{pair[1]:.2f}", f"{pair[0] / pair[1]:.2f}x")
            for name, pair in timed.items()
            if pair is not None
        ]
        return notebook.table(
            ("", "before, ms", "after, ms", "faster"),
            rows,
            title=f"Batch {self.batch_size}, {self.threads} threads, {self.device}",
            below=" ".join([f"MACs alone would give {self.ideal:.2f}x.", *self._details()[-1:]]),
        )

    def __str__(self) -> str:
        return (
            f"{self.before_ms:.2f} ms -> {self.after_ms:.2f} ms, {self.speedup:.2f}x faster "
            f"(MACs alone would give {self.ideal:.2f}x); batch {self.batch_size}, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.device}, "
            f"median of {self.runs}" + "".join(f"\n{line}" for line in self._details())
        )

    def _details(self) -> list[str]:
        pairs = {"contiguous": self.contiguous, "channels last": self.channels_last}
        pairs = pairs if self.channels_last else {}
        lines = [
            f"{name}: {pair[0]:.2f} ms -> {pair[1]:.2f} ms, {pair[0] / pair[1]:.2f}x faster"
            for name, pair in (pairs | {"compiled": self.compiled}).items()
            if pair is not None
        ]
        if not self.settled:
            known = (
                "too few runs"
                if self.interval is None
                else "{:.2f}x to {:.2f}x".format(*self.interval)
            )
            lines.append(
                f"The speed-up has not settled ({known}): time it again with more runs, or when "
                "nobody else uses the machine."
            )
        denormals = "flushed to zero" if self.flushes_denormals else "computed"
        remarks = [f"denormals are {denormals}"]
        if self.processor_time:
            remarks.append("the processor's time counts")
        if self.channels_last is not None:
            before, after = (self._format(side).replace("_", " ") for side in (0, 1))
            formats = f"{before} before and {after} after" if before != after else after
            remarks.append(f"fastest in {formats} format")
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
                f"{name} does not run on example_inputs: {refusal(error)}. Pass one batch as both "
                "models take it."
            ) from error
    return int(counter.get_total_flops()) // 2


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
        runs: Timed runs of each model, alternating; up to four times as many while they do not
            agree how much faster the second model is.
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
    race = Race.on(example.device, runs, min_run_ms=min_run_ms)
    models = (model_a, model_b)
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        model_a.eval(), model_b.eval()
        with torch.inference_mode():
            calls = [_caller(model, example_inputs) for model in models]
            macs = [_macs(call, n) for n, call in zip(("model_a", "model_b"), calls, strict=True)]
            layer = busiest(model_a, calls[0])
            variants = [[call] for call in calls]
            for others, model in zip(variants, models, strict=True):
                more = formats(example_inputs)[1:]
                others.extend(in_format(model, example_inputs, f)[1] for f in more)
            times = race.times([*variants[0], *variants[1]], len(variants[0]))
        medians = [_median(pair) for pair in zip(*_halves(times), strict=True)]
        in_last = len(medians) == 2 and medians[1][1] < medians[0][1]
        best = torch.channels_last if in_last else torch.contiguous_format
        compiled_times = None
        if compiled:
            with torch.no_grad():  # the compiler does not take inference tensors
                quick = [compiled_call(in_format(m, example_inputs, best)[1]) for m in models]
                compiled_times = race.medians(quick)
    finally:
        for module, mode in modes:
            module.training = mode
    before, after = (fastest(half) for half in _halves(times))
    return Latency(
        before_ms=statistics.median(before),
        after_ms=statistics.median(after),
        macs_before=macs[0],
        macs_after=macs[1],
        batch_size=batch_size(example_inputs),
        runs=len(before),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(example.device) if example.is_cuda else cpu_name(),
        channels_last=medians[1] if len(medians) == 2 else None,
        compiled=compiled_times,
        round_to=None if layer is None else _suitable(layer),
        flushes_denormals=flushes_denormals(),
        contiguous=medians[0],
        interval=_interval(before, after),
        processor_time=race.clock is time.process_time,
    )


def _halves(times: list[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
    """Times of the first model's variants, and of the second's."""
    half = len(times) // 2
    return times[:half], times[half:]


def _median(pair: Sequence[Sequence[float]]) -> tuple[float, float]:
    return statistics.median(pair[0]), statistics.median(pair[1])


def _interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Of the speed-up: what rounds say, and in any case the ratio of the medians."""
    ends = interval(paired(before, after))
    speedup = statistics.median(before) / statistics.median(after)
    return None if ends is None else (min(ends[0], speedup), max(ends[1], speedup))


def _suitable(layer: Layer) -> int:
    return hardware.unit(hardware.of(layer.weight.device), widths(layer)[1])


def flushes_denormals() -> bool:
    """Whether this thread counts numbers below the normal range as zero."""
    return float(torch.tensor([1e-39], device="cpu") * torch.tensor([0.5], device="cpu")) == 0
