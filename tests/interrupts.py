"""An interrupt at any line of some files, and everything that must be as it was after it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import decayprune

SOURCE = Path(decayprune.__file__).parent
Line = tuple[str, int, int]  # file, line, which time


def lines_of(call: Callable[[], Any], rooms: Sequence[str]) -> list[Line]:
    """Every line that a call executes in some rooms, the first time and the last."""
    times: Counter[tuple[str, int]] = Counter()
    _traced(call, rooms, lambda file, line: times.update([(file, line)]))
    return [(f, n, time) for (f, n), last in times.items() for time in sorted({1, last})]


def interrupt(call: Callable[[], Any], rooms: Sequence[str], at: Line) -> None:
    """Call, and raise KeyboardInterrupt just before one line; it must come through."""
    times: Counter[tuple[str, int]] = Counter()

    def strike(file: str, line: int) -> None:
        times[file, line] += 1
        if (file, line, times[file, line]) == at:
            raise KeyboardInterrupt

    try:
        _traced(call, rooms, strike)
    except KeyboardInterrupt:
        return
    raise AssertionError(f"no interrupt at {at}")


def _traced(call: Callable[[], Any], rooms: Sequence[str], see: Callable[[str, int], None]) -> None:
    files = {str(file) for room in rooms for file in SOURCE.glob(room)}

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            see(frame.f_code.co_filename, frame.f_lineno)
        return local

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return local if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)


def everything(
    model: nn.Module, optimizer: torch.optim.Optimizer, *others: nn.Module
) -> dict[Any, Any]:
    """A model, its copies and an optimizer's state as they are now: bits, objects, attributes."""
    found: dict[Any, Any] = {}
    for number, module in enumerate((model, *others)):
        for name, part in module.named_modules():
            found[number, name, "class"] = type(part)
            found[number, name, "attributes"] = {
                k: v for k, v in vars(part).items() if isinstance(v, (int, str, float, tuple))
            }
            found[number, name, "members"] = {
                k: list(v) for k, v in vars(part).items() if isinstance(v, dict)
            }
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            found[number, name] = id(tensor), tensor.tolist(), tensor.stride()
            found[number, name, "grad"] = None if tensor.grad is None else tensor.grad.tolist()
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter)
        found[name, "state"] = None if state is None else dict(_plain(state))
    return found


def _plain(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        yield key, value.tolist() if isinstance(value, torch.Tensor) else value
