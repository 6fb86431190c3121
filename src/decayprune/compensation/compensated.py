"""A selector whose consumers take over what they lose, at the moment when it is picked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from decayprune.compensation.calibration import Calibration
from decayprune.compensation.ridge import StandIn, folded, stand_in
from decayprune.method.lifecycle import LifecycleState
from decayprune.method.selector import Selection, Selector


@dataclass(frozen=True)
class Taken:
    """What one consumer took over in one round, part by part of what left.

    Attributes:
        reader: Number of the consumer.
        staying: Input channels that took over, shape ``(k,)``.
        structure: Structure of each channel that left, shape ``(r,)``.
        columns: Their columns as they were, shape ``(outputs, r, ...)``; zero for outputs that
            leave, which gain nothing.
        weights: How much of each went to whom, shape ``(r, k)``.
        offset: How much of each went to the bias, shape ``(r,)``.
    """

    reader: int
    staying: Tensor
    structure: Tensor
    columns: Tensor
    weights: Tensor
    offset: Tensor

    def only(self, chosen: Tensor) -> Taken:
        """The part of some of the channels that left, bool, shape ``(r,)``."""
        return replace(
            self,
            structure=self.structure[chosen],
            columns=self.columns[:, chosen],
            weights=self.weights[chosen],
            offset=self.offset[chosen],
        )

    def among(self, staying: Tensor, outputs: Tensor) -> Taken:
        """The part of some of the channels that took over and of some outputs, both bool."""
        columns = self.columns.clone()
        columns[~outputs] = 0
        return replace(
            self,
            staying=self.staying[staying],
            weights=self.weights[:, staying],
            columns=columns,
        )


class _Due(NamedTuple):
    """What has to be written, and whether it is gained or given back."""

    part: Taken
    sign: Literal[1, -1]


_Writing = tuple[tuple[Tensor, Tensor], ...]
"""Parameters and their new values."""


class Compensated:
    """Does what another selector does, and has the consumers take over what it picks.

    What is picked goes into the columns of what stays at once; a structure that is released takes
    its share back. Weights are written by :meth:`settle`, when the decay's step is complete.

    Args:
        selector: Who selects.
        calibration: What the consumers read.
    """

    def __init__(self, selector: Selector, calibration: Calibration) -> None:
        self._selector, self._calibration = selector, calibration
        self._taken: tuple[Taken, ...] = ()
        self._due: tuple[_Due | _Writing, ...] = ()

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Selection | None:
        """As the other selector; notes what the consumers gain and give back."""
        due = self._given_back(state) if released else []
        selection = self._selector.select(state, step, parameters, released=released)
        if selection is not None and selection.ids.numel():
            leaves = torch.zeros(len(state.phase), dtype=torch.bool, device="cpu")
            leaves[selection.ids.cpu()] = True
            fresh = self._fitted(leaves, ~(leaves | state.committed.cpu()))
            self._taken += fresh
            due += [_Due(part, 1) for part in fresh]
        self._due += tuple(due)
        return selection

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """As the other selector."""
        return self._selector.releasable(state, step, ids)

    def done(self, state: LifecycleState, step: int) -> bool:
        """As the other selector."""
        return self._selector.done(state, step)

    @torch.no_grad()
    def settle(self) -> bool:
        """Write what the consumers have gained and given back; whether there was anything.

        After an interrupt at any line it can be called again: what is to be written is noted
        before it is, and written as a whole.
        """
        settled = bool(self._due)
        while self._due:
            head, *rest = self._due
            if isinstance(head, _Due):
                self._due = (self._prepared(head), *rest)
                continue
            for tensor, values in head:
                tensor.copy_(values)
            self._due = tuple(rest)
        return settled

    def _prepared(self, due: _Due) -> _Writing:
        part, reader = due.part, self._calibration.readers[due.part.reader]
        gain, offset = folded(StandIn(part.weights.double(), part.offset.double()), part.columns)
        weight, bias = reader.weight.clone(), reader.layer.bias
        weight[:, part.staying.to(weight.device)] += due.sign * gain.to(weight)
        writing = [(reader.weight, weight)]
        if reader.offset and isinstance(bias, Tensor):
            writing.append((bias, bias + due.sign * offset.to(bias)))
        return tuple(writing)

    def _fitted(self, leaves: Tensor, stays: Tensor) -> tuple[Taken, ...]:
        """What each consumer takes over when structures leave (bool, shape ``(S,)``)."""
        fitted = []
        for number, reader in enumerate(self._calibration.readers):
            leaving = (leaves[reader.structure] & (reader.structure >= 0)).nonzero().flatten()
            staying = _here(stays, reader.structure).nonzero().flatten()
            inside = reader.branch >= 0 and not bool(stays[reader.branch])
            if not leaving.numel() or not staying.numel() or inside or not reader.writable:
                continue  # inside: with its whole branch it leaves itself
            weight, moments = reader.weight, self._calibration.moments[reader.name]
            fit = stand_in(moments, staying, leaving, offset=reader.offset)
            columns = weight[:, leaving.to(weight.device)].clone()
            columns[~_here(stays, reader.outputs)] = 0
            structure = reader.structure[leaving]
            weights, offset = fit.weights.float(), fit.offset.float()
            fitted.append(Taken(number, staying, structure, columns, weights, offset))
        return tuple(fitted)

    def _given_back(self, state: LifecycleState) -> list[_Due]:
        """Shares of structures that were released; they are forgotten here."""
        committed, back, kept = state.committed.cpu(), [], []
        for part in self._taken:
            out = committed[part.structure]
            reader = self._calibration.readers[part.reader]
            gone = reader.branch >= 0 and bool(state.pruned[reader.branch])
            if bool((~out).any()) and not gone:
                # What has left since has nothing to give back.
                staying = _here(~committed, reader.structure[part.staying])
                outputs = _here(~committed, reader.outputs)
                back.append(_Due(part.only(~out).among(staying, outputs), -1))
            if bool(out.any()):
                kept.append(part.only(out))
        self._taken = tuple(kept)
        return back

    # ---------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Any]:
        """The shares that a release would take back."""
        return {"taken": [vars(part) for part in self._taken]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._taken, self._due = tuple(Taken(**part) for part in state["taken"]), ()


def _here(structures: Tensor, labels: Tensor) -> Tensor:
    """Which indices are fixed, or of one of some structures (bool, shape ``(S,)``)."""
    return structures[labels] | (labels < 0)
