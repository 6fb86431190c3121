"""What makes a model fast on a processor besides fewer multiply-accumulates.

Two things are known of a processor, and both are ratios that hardly change from one to the next of
its kind: how many channels it works on at once, and how many multiply-accumulates take as long as
one value takes to travel between two layers. They are constants here, not measured when a pruner is
built: on a machine that others use, too, the clock would decide otherwise at every run, and
processes that prune together have to agree. ``benchmarks/speed.py`` holds them to the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from decayprune.structures.structure_map import StructureMap

_STEPS = 16
"""Steps that a width has at least: a narrow one gets a smaller unit. With 4 of them layers that
should be alike end with a quarter or with half of their channels, at a price in accuracy; 8 cost
0.26 points, 16 cost 0.15 (``benchmarks/rounding.py``)."""

_WIDE = 8
"""Blocks from which on two are taken together: libraries tile them so."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """How a kind of processor spends its time.

    Attributes:
        block: Channels that it works on at once.
        macs_per_value: Multiply-accumulates of a layer that take as long as one value of an
            activation on its way from one layer to the next, normaliser and nonlinearity included.

    Raises:
        ValueError: A figure is out of range.
    """

    block: int
    macs_per_value: float

    def __post_init__(self) -> None:
        if self.block < 1 or self.macs_per_value < 0:
            raise ValueError(
                "dp.Hardware takes block from 1 and macs_per_value from 0, found "
                f"block={self.block!r}, macs_per_value={self.macs_per_value!r}."
            )


def _lanes() -> int:
    """Numbers of single precision in a register of this processor."""
    return {"AVX512": 16, "DEFAULT": 4}.get(torch.backends.cpu.get_cpu_capability(), 8)


def known(target: str) -> Hardware:
    """A kind of processor by its name.

    Args:
        target: ``"cpu"``: torch on this machine's; ``"cuda"``: tensor cores in half precision;
            ``"onnxruntime"``: on this machine's processor, where a normaliser and a nonlinearity
            cost nothing, as they are merged into their layer.

    Raises:
        ValueError: It is none of them.
    """
    if target == "cuda":
        return Hardware(block=8, macs_per_value=1000)
    if target == "onnxruntime":
        return Hardware(block=_lanes(), macs_per_value=50)
    if target == "cpu":
        return Hardware(block=_lanes(), macs_per_value=100)
    raise ValueError(
        "target is 'cpu', 'cuda', 'onnxruntime', 'compiled', or a dp.Hardware(block=..., "
        f"macs_per_value=...); found {target!r}."
    )


def of(device: torch.device) -> Hardware:
    """The kind of processor that a device is.

    Args:
        device: What torch runs on.
    """
    return known("cpu" if device.type == "cpu" else "cuda")


def units(hardware: Hardware, structures: StructureMap) -> tuple[int, ...]:
    """Multiple of channels that the width of each group should be.

    Args:
        hardware: It will run on.
        structures: Of the dense model.
    """
    return tuple(unit(hardware, group.size * group.channels) for group in structures.groups)


def checked_units(state: Any, groups: int) -> tuple[int, ...]:
    """What :func:`units` found, from a file.

    Args:
        state: What the file has.
        groups: How many there are.

    Raises:
        ValueError: It is damaged.
    """
    whole = isinstance(state, (list, tuple)) and len(state) == groups
    if not whole or not all(type(value) is int and value >= 1 for value in state):
        raise ValueError(
            "The widths that suit a machine are damaged in this pruner state: one multiple from 1 "
            "for each group was expected. Load a state that state_dict() returned."
        )
    return tuple(state)


def unit(hardware: Hardware, width: int) -> int:
    """The multiple that suits a width: a block, two where there are many, less where it is narrow.

    Args:
        hardware: It will run on.
        width: Channels in the dense model.
    """
    found = hardware.block * (2 if width >= _WIDE * hardware.block else 1)
    while found > 1 and width < _STEPS * found:
        found //= 2
    return found
