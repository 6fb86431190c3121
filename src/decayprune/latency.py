"""Is the smaller model really faster? Two models timed side by side in one process.

Runs of both models are interleaved, so that a machine that slows down slows both, and medians are
reported beside the ratio of their multiply-accumulates: that ratio is the speed-up to hope for.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


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
    """

    before_ms: float
    after_ms: float
    macs_before: int
    macs_after: int
    batch_size: int
    runs: int
    threads: int
    device: str

    @property
    def speedup(self) -> float:
        """Time before divided by time after; above 1 the second model is faster."""
        return self.before_ms / self.after_ms

    @property
    def ideal(self) -> float:
        """Multiply-accumulates before divided by after: the speed-up if only they counted."""
        return self.macs_before / max(self.macs_after, 1)

    def to_json(self) -> dict[str, Any]:
        """All figures, the two ratios included, as plain scalars."""
        return {**asdict(self), "speedup": self.speedup, "ideal": self.ideal}

    def __str__(self) -> str:
        return (
            f"{self.before_ms:.2f} ms -> {self.after_ms:.2f} ms, {self.speedup:.2f}x faster "
            f"(MACs alone would give {self.ideal:.2f}x); batch {self.batch_size}, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.device}, "
            f"median of {self.runs}"
        )


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
    items = value.values() if isinstance(value, dict) else value
    return next(item for item in items if isinstance(item, Tensor))


def _caller(model: nn.Module, inputs: Any) -> Callable[[], object]:
    if isinstance(inputs, dict):
        return lambda: model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return lambda: model(*inputs)
    return lambda: model(inputs)


def _macs(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
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
) -> Latency:
    """Time two models on the same inputs, in evaluation mode, without gradients.

    Args:
        model_a: The model before.
        model_b: The model after.
        example_inputs: A tensor, or a tuple or dict of arguments; one batch of the size to time.
        runs: Timed runs of each model, alternating.
        min_run_ms: A run repeats the forward pass until it lasts about this long, so that the
            clock's and the scheduler's grain do not show.

    Returns:
        The medians. Training modes are restored.

    Raises:
        ValueError: ``runs`` is less than 1.
    """
    if runs < 1:
        raise ValueError(f"benchmark() needs runs of at least 1; found {runs!r}.")
    example = _first_tensor(example_inputs)
    synchronize = torch.cuda.synchronize if example.is_cuda else lambda: None
    modules = [m for model in (model_a, model_b) for m in model.modules()]
    modes = [module.training for module in modules]
    calls = [_caller(model, example_inputs) for model in (model_a, model_b)]
    try:
        model_a.eval(), model_b.eval()
        with torch.inference_mode():
            macs = [_macs(call) for call in calls]
            once = [min(_time(call, 1, synchronize) for _ in range(3)) for call in calls]
            repeats = [max(1, round(min_run_ms / max(t, 1e-6))) for t in once]
            times: list[list[float]] = [[], []]
            for run in range(runs):
                # Who goes first alternates too: a warm cache favours the second.
                for side in (0, 1) if run % 2 == 0 else (1, 0):
                    times[side].append(_time(calls[side], repeats[side], synchronize))
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return Latency(
        statistics.median(times[0]),
        statistics.median(times[1]),
        macs[0],
        macs[1],
        batch_size=example.shape[0] if example.dim() else 1,
        runs=runs,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(example.device) if example.is_cuda else cpu_name(),
    )
