"""What the tape holds: marks of activations, labelled dimensions, sums over channels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from decayprune.structures.structure_map import Role

Key = tuple[str, int]
"""A dimension of a parameter or buffer: (qualified name, dim)."""


@dataclass(frozen=True, eq=False)
class Mark:
    """What is known of an activation.

    Attributes:
        labels: Which structure each element belongs to, expanded to the activation's shape.
        sources: Positions in :attr:`Tape.sources` of what scales this activation.
        zero: Whether a structure that is all zero makes its elements here zero.
    """

    labels: Tensor
    sources: frozenset[int] = frozenset()
    zero: bool = True


@dataclass(eq=False)
class LabelledDim:
    """A dimension of a parameter that carries labels.

    ``table``: the parameter is used as it is, whatever the input: positions, usually.
    """

    name: str
    dim: int
    role: Role
    labels: Tensor
    table: bool = False


@dataclass(frozen=True, eq=False)
class Consumption:
    """Where channels are summed over: ``column`` reads ``labels``, scaled by ``sources``.

    ``normed``: the column has a share in a norm that goes with it, so it shrinks in any case.
    """

    labels: Tensor
    sources: frozenset[int]
    column: Key | None
    normed: bool = False
