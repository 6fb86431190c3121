"""Compensation that is handed over along the decay: an ablation, not in the library.

The library gives the consumers of a picked structure all that they take over at once, so that it
counts twice until it is gone. Here they get ``1 - phi`` of it when the structure is at the share
``phi`` of its length. That keeps the function where a consumer's input shrinks by ``phi`` too: not
quite under GELU, where rows shrink before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import decayprune as dp
from decayprune.compensation.calibration import Calibration
from decayprune.compensation.consumers import Consumer
from decayprune.compensation.ridge import StandIn, folded, stand_in
from decayprune.method.lifecycle import DECAYING, PRUNED


class _Replacement(NamedTuple):
    """What a consumer does when its picked inputs leave."""

    reader: Consumer
    staying: Tensor
    structures: Tensor  # of the leaving columns
    columns: Tensor  # as they were when picked
    fit: StandIn


class HandOver:
    """A pruner whose consumers take over what they lose while it decays.

    Args:
        pruner: Picks structures in one round, and does not compensate by itself.
        calibration: What the consumers read.
    """

    def __init__(self, pruner: dp.DecayPruner, calibration: Calibration) -> None:
        self.pruner, self._calibration = pruner, calibration
        self._replacements: list[_Replacement] = []
        self._given = torch.zeros(pruner.structures.num_structures)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pruner, name)

    @torch.no_grad()
    def step(self) -> None:
        """The pruner's step, and what it means for the consumers."""
        if self._replacements:
            self.pruner.step()
        else:  # a short decay moves its columns at once, so they are noted before
            readers = self._calibration.readers
            before = {reader.name: reader.layer.weight.detach().clone() for reader in readers}
            self.pruner.step()
            self._fit(before)
        self._settle()

    def _fit(self, before: Mapping[str, Tensor]) -> None:
        picked = self.pruner.lifecycle.committed
        for reader in self._calibration.readers:
            leaves = (reader.structure >= 0) & picked[reader.structure.clamp(min=0)]
            if not bool(leaves.any()):
                continue
            leaving, staying = leaves.nonzero().flatten(), (~leaves).nonzero().flatten()
            moments = self._calibration.moments[reader.name]
            fit = stand_in(moments, staying, leaving, offset=reader.layer.bias is not None)
            columns = before[reader.name][:, leaving]
            structures = reader.structure[leaving]
            self._replacements.append(_Replacement(reader, staying, structures, columns, fit))

    def _settle(self) -> None:
        """Give the consumers what they are due by now; a released structure takes it back."""
        state = self.pruner.lifecycle
        left = state.length / state.start_length.clamp(min=torch.finfo(torch.float32).tiny)
        handed = torch.where(state.phase == DECAYING, 1 - left.float().clamp(max=1), 1.0)
        due = torch.where(state.committed, handed, 0.0)
        change = due - self._given
        for reader, staying, structures, columns, fit in self._replacements:
            share = change[structures]
            if bool((share != 0).any()):
                wide = share.view(-1, *[1] * (columns.dim() - 2))  # beside a kernel's positions
                weight, bias = folded(fit, columns * wide)
                gone = state.phase[reader.outputs.clamp(min=0)] == PRUNED
                there = ~((reader.outputs >= 0) & gone)  # a row that has left stays zero
                own = torch.where(there, bias, 0.0)
                rows = there.view(-1, *[1] * (weight.dim() - 1))
                weight = torch.where(rows, weight, 0.0)
                reader.layer.weight[:, staying] += weight.to(reader.layer.weight)
                if reader.layer.bias is not None:
                    reader.layer.bias += own.to(reader.layer.bias)
        self._given = due
