"""What makes a model fast on a processor besides fewer multiply-accumulates.

Two things are known of a processor, and both are ratios that hardly change from one to the next of
its kind: how many channels it works on at once, and how many multiply-accumulates take as long as
one value takes to travel between two layers. They are constants here, not measured when a pruner is
built: on a machine that others use, too, the clock would decide otherwise at every run, and
processes that prune together have to agree. ``benchmarks/speed.py`` holds them to the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from decayprune.cost import CostModel
from decayprune.structures.structure_map import StructureMap

_STEPS = 16
"""Steps that a width has at least: a narrow one gets a smaller unit. With 4 of them layers that
should be alike end with a quarter or with half of their channels, at a price in accuracy; 8 still
cost 0.3 points (``benchmarks/rounding.py``)."""

_WIDE = 8
"""Blocks from which on two are taken together: libraries tile them so."""

_PULL = 0.25
"""How far time pulls the choice: 0 spends MACs alone, 1 weighs what leaves by its time per MAC.
Near the best shares accuracy falls with the square of it, and time with itself: a little is cheap.
"""


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
        "target is 'cpu', 'cuda', 'onnxruntime', or a dp.Hardware(block=..., macs_per_value=...); "
        f"found {target!r}."
    )


@dataclass(frozen=True)
class Suit:
    """What suits a processor, for each group of structures.

    Attributes:
        round_to: Multiple of channels that a width should be.
        haste: Factor by which the time that a group takes should speak for cutting it: above 1
            where time falls faster than MACs.
    """

    round_to: tuple[int, ...]
    haste: tuple[float, ...]

    @classmethod
    def of(cls, hardware: Hardware, structures: StructureMap, cost: CostModel) -> Suit:
        """What suits a processor.

        Args:
            hardware: It will run on.
            structures: Of the dense model.
            cost: Of the dense model.
        """
        channels = [group.size * group.channels for group in structures.groups]
        return cls(
            tuple(unit(hardware, width) for width in channels),
            tuple(haste(hardware, cost, group) for group in range(len(channels))),
        )

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both, of shape ``(G,)``."""
        return (
            torch.tensor(self.round_to, dtype=torch.int64, device="cpu"),
            torch.tensor(self.haste, dtype=torch.float64, device="cpu"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"round_to": [*self.round_to], "haste": [*self.haste]}

    @classmethod
    def from_state_dict(cls, state: Any, groups: int) -> Suit:
        """What :meth:`state_dict` described.

        Args:
            state: What it gave.
            groups: ``G``.

        Raises:
            ValueError: It is damaged.
        """
        try:
            units = tuple(int(value) for value in state["round_to"])
            factors = tuple(float(value) for value in state["haste"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(_DAMAGED) from error
        numbers = all(u >= 1 for u in units) and all(f > 0 and isfinite(f) for f in factors)
        if (len(units), len(factors)) != (groups, groups) or not numbers:
            raise ValueError(_DAMAGED)
        return cls(units, factors)


_DAMAGED = (
    "The widths that suit a machine are damaged in this pruner state: one multiple and one "
    "positive factor for each group were expected. Load a state that state_dict() returned."
)


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


def haste(hardware: Hardware, cost: CostModel, group: int) -> float:
    """How much the time that a group takes should speak for cutting it.

    Multiply-accumulates that come with many values to move save more time than they say.

    Args:
        hardware: It will run on.
        cost: Of the dense model.
        group: Number of the group.

    Returns:
        A power of how much more of its time the model saves with half of the group than of its
        MACs; 1 if time is nothing but MACs.
    """

    def time(kept: Tensor) -> float:
        return cost.macs(kept) + hardware.macs_per_value * cost.values(kept)

    half = cost.sizes.clone()
    half[group] //= 2
    macs = 1 - cost.macs(half) / max(cost.macs(cost.sizes), 1)
    return float(((1 - time(half) / time(cost.sizes)) / macs) ** _PULL) if macs > 0 else 1.0
