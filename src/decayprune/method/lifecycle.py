"""The states of a structure and its legal moves, as pure functions.

``ACTIVE -> DECAYING`` (decay), ``DECAYING -> ACTIVE`` (release, then a cool-down),
``DECAYING -> PRUNED`` (prune: its norm reached 0). Nothing leaves ``PRUNED``. Every function takes
a :class:`LifecycleState` and returns a new one; an illegal move raises. Who is picked, released or
scaled is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from decayprune.method.rectify import Statistics

ACTIVE, DECAYING, PRUNED = 0, 1, 2


@dataclass(frozen=True)
class Event:
    """One move of one structure.

    Attributes:
        step: Optimizer step at which it happened (the first one is 1).
        kind: ``"decay"`` (it starts to shrink), ``"release"`` or ``"prune"`` (it is now zero).
        structure: Its number in the structure map.
        layer: Module that produces it.
        index: Its position in that layer.
        c_rate: Consistency of the resistance so far; ``None`` when the decay starts.
        c_len: Share of the length taken that training gave back; ``None`` likewise.
        work: First-order cost of the decay so far, in units of the loss; ``None`` likewise.
    """

    step: int
    kind: Literal["decay", "release", "prune"]
    structure: int
    layer: str
    index: int
    c_rate: float | None = None
    c_len: float | None = None
    work: float | None = None


@dataclass(frozen=True)
class LifecycleState:
    """Where each of ``S`` structures stands; every tensor has shape ``(S,)``.

    A step that a device repeats by itself writes into the tensors (:func:`write_`); else they stay
    as they are, and what moves makes another state.

    Attributes:
        phase: ``ACTIVE``, ``DECAYING`` or ``PRUNED``, int8.
        age: Optimizer steps since the decay began, int32.
        span: ``N``, how many steps it lasts, int32.
        start_length: Norm of the carriers when the structure was picked.
        length: Norm of its carriers after the last step.
        score: Raw importance when last computed; frozen from the pick to the end of a cool-down.
        cool_until: Last step of its cool-down, int32; 0 where there is none.
        statistics: Running sums of the self-rectifying figures.
    """

    phase: Tensor
    age: Tensor
    span: Tensor
    start_length: Tensor
    length: Tensor
    score: Tensor
    cool_until: Tensor
    statistics: Statistics

    @classmethod
    def fresh(cls, size: int, device: torch.device | None = None) -> LifecycleState:
        """All structures active; a vector takes the room of one number until somebody moves."""

        def integers(dtype: torch.dtype) -> Tensor:
            return torch.zeros((), dtype=dtype, device=device).expand(size)

        def floats() -> Tensor:
            return torch.zeros((), device=device).expand(size)

        return cls(
            phase=integers(torch.int8),
            age=integers(torch.int32),
            span=integers(torch.int32),
            start_length=floats(),
            length=floats(),
            score=floats(),
            cool_until=integers(torch.int32),
            statistics=Statistics.zeros(size, device),
        )

    @property
    def decaying(self) -> Tensor:
        """Numbers of the decaying structures, ascending, int64."""
        return (self.phase == DECAYING).nonzero().flatten()

    @property
    def pruned(self) -> Tensor:
        """Structures that are zero for good, bool, ``(S,)``."""
        return self.phase == PRUNED

    @property
    def committed(self) -> Tensor:
        """Structures that decay or are pruned, bool, ``(S,)``: what counts against a budget."""
        return self.phase != ACTIVE

    def cooling(self, step: int) -> Tensor:
        """Active structures that may not be picked at ``step``, bool, ``(S,)``."""
        return (self.phase == ACTIVE) & (self.cool_until >= step)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, by name, which nobody writes to."""
        # What takes the room of one number for all is never written to.
        return {n: v if v.stride() == (0,) else v.clone() for n, v in _flat(self).items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], like: LifecycleState) -> LifecycleState:
        """The state that :meth:`state_dict` described.

        Raises:
            ValueError: A tensor is missing, or has another shape than in ``like``.
        """
        expected = _flat(like)
        if set(state) != set(expected):
            odd = sorted(set(state) ^ set(expected))
            raise ValueError(
                f"The pruner's state has other fields than expected: {', '.join(odd)}. Load one "
                "that state_dict() of this version returned."
            )
        loaded = {}
        for name, tensor in expected.items():
            if state[name].shape != tensor.shape:
                raise ValueError(
                    f"The pruner's state is for {state[name].numel()} structures, this model has "
                    f"{tensor.numel()} (field {name!r}): load it into the model it was saved for."
                )
            loaded[name] = state[name].to(tensor.device, tensor.dtype).clone()
        _check_values(loaded)
        prefix = "statistics."
        sums = {n[len(prefix) :]: v for n, v in loaded.items() if n.startswith(prefix)}
        plain = {n: v for n, v in loaded.items() if not n.startswith(prefix)}
        return cls(**plain, statistics=Statistics(**sums))


def _flat(state: LifecycleState) -> dict[str, Tensor]:
    plain = {f.name: getattr(state, f.name) for f in fields(state) if f.name != "statistics"}
    return plain | {f"statistics.{n}": v for n, v in state.statistics._asdict().items()}


def write_(state: LifecycleState, after: LifecycleState) -> None:
    """Write what is different later into the tensors of a state, for who reads them by address.

    Args:
        state: Its tensors are written to.
        after: The state after it.
    """
    pairs = zip(_flat(state).values(), _flat(after).values(), strict=True)
    changed = [(old, new) for old, new in pairs if old is not new]
    torch._foreach_copy_([old for old, _ in changed], [new for _, new in changed])


def _check_values(loaded: Mapping[str, Tensor]) -> None:
    phase = loaded["phase"]
    if bool(((phase < ACTIVE) | (phase > PRUNED)).any()):
        raise ValueError(
            "The pruner's state has phases other than active, decaying and pruned (0 to 2). Load "
            "one that state_dict() returned."
        )
    for name in ("age", "span", "start_length", "length"):
        if not bool((loaded[name] >= 0).all()):  # NaN is not, either
            raise ValueError(
                f"The pruner's state has a negative {name}, or one that is no number. Load one "
                "that state_dict() returned."
            )


def _require(state: LifecycleState, ids: Tensor, phase: int, move: str) -> None:
    if bool((state.phase[ids] != phase).any()):
        names = ("active", "decaying", "pruned")
        wrong = ids[state.phase[ids] != phase]
        raise ValueError(
            f"Only {names[phase]} structures can {move}; structure {int(wrong[0])} is "
            f"{names[int(state.phase[wrong[0]])]}."
        )


def begin(
    state: LifecycleState, ids: Tensor, *, length: Tensor, decay_steps: int
) -> LifecycleState:
    """Active structures start to decay.

    Args:
        state: The state before.
        ids: Who starts, shape ``(D,)``.
        length: Norm of their carriers, ``(D,)``.
        decay_steps: ``N``.

    Raises:
        ValueError: One of them is not active.
    """
    _require(state, ids, ACTIVE, "start to decay")
    length = length.to(state.length.dtype)
    return replace(
        state,
        phase=state.phase.index_fill(0, ids, DECAYING),
        age=state.age.index_fill(0, ids, 0),
        span=state.span.index_fill(0, ids, decay_steps),
        start_length=state.start_length.index_copy(0, ids, length),
        length=state.length.index_copy(0, ids, length),
        cool_until=state.cool_until.index_fill(0, ids, 0),
        statistics=state.statistics.reset(ids),
    )


def release(state: LifecycleState, ids: Tensor, *, cool_until: int) -> LifecycleState:
    """Decaying structures become active again, and cannot be picked until after ``cool_until``.

    Raises:
        ValueError: One of them does not decay.
    """
    _require(state, ids, DECAYING, "be released")
    return replace(
        state,
        phase=state.phase.index_fill(0, ids, ACTIVE),
        cool_until=state.cool_until.index_fill(0, ids, cool_until),
    )


def tick(state: LifecycleState, decaying: Tensor | None = None) -> LifecycleState:
    """Every decaying structure is one optimizer step older.

    Args:
        state: The state before.
        decaying: Those, bool, shape ``(S,)``, if they are known.
    """
    if decaying is None:
        decaying = state.phase == DECAYING
    return replace(state, age=state.age + decaying)


def finish(state: LifecycleState, ids: Tensor) -> LifecycleState:
    """Decaying structures are pruned, for good.

    Raises:
        ValueError: One of them does not decay.
    """
    _require(state, ids, DECAYING, "be pruned")
    return replace(
        state,
        phase=state.phase.index_fill(0, ids, PRUNED),
        length=state.length.index_fill(0, ids, 0),
    )
