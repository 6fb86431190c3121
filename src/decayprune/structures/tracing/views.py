"""Parameters that were moved before they were used: ``x @ weight.T``, one expert of a stack.

Nothing is known of a parameter's dimensions until an operator reads it as a weight, a factor or a
token. So movement of a parameter labels nothing: it is executed on the *places* of its elements,
one integer tensor for each of its dimensions, and whoever reads the result sees which indices of
which dimension lie where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from decayprune.structures.tracing.labels import along, compress, core, varying


@dataclass(frozen=True, eq=False)
class View:
    """A parameter or buffer, moved.

    Attributes:
        parameter: What was moved.
        moved_to: See :attr:`places`; None: the parameter as it is.
        zero: Whether an element 0 of the parameter is 0 here: values are its own, or a function
            of them that keeps zeros.
    """

    parameter: Tensor
    moved_to: tuple[Tensor, ...] | None = None
    zero: bool = True

    @cached_property
    def places(self) -> tuple[Tensor, ...]:
        """For each dimension of the parameter, the index that each element had along it.

        Expanded to the shape of the result.
        """
        if self.moved_to is not None:
            return self.moved_to
        shape = self.parameter.shape
        return tuple(along(torch.arange(n, device="cpu"), p, shape) for p, n in enumerate(shape))

    def moved(self, move: Callable[[Tensor], Any]) -> list[View]:
        """The views that a movement makes of this one: several where it divides."""
        results = [move(place) for place in self.places]
        each = [result if isinstance(result, (tuple, list)) else (result,) for result in results]
        return [
            replace(self, moved_to=tuple(compress(part) for part in parts))
            for parts in zip(*each, strict=True)
        ]

    def axis(self, dim: int) -> tuple[int, Tensor] | None:
        """Which dimension of the parameter lies along ``dim``, and the indices there.

        None where no dimension lies there, or one that lies along others of the view too.
        """
        dim %= self.places[0].dim()
        if self.places[0].shape[dim] == 1:
            return self._only(dim)
        found = [p for p, place in enumerate(self.places) if dim in varying(place)]
        if not found or varying(self.places[found[0]]) != [dim]:
            return None
        return found[0], core(self.places[found[0]], [dim]).reshape(-1)

    def _only(self, dim: int) -> tuple[int, Tensor] | None:
        """The dimension of size 1 that lies along one of size 1, counted among those."""
        own = [p for p, size in enumerate(self.parameter.shape) if size == 1]
        here = [d for d, size in enumerate(self.places[0].shape) if size == 1]
        if len(own) != len(here):
            return None
        return own[here.index(dim)], torch.zeros(1, dtype=torch.int64, device="cpu")

    def whole(self, p: int) -> bool:
        """Whether the view shows every index of a dimension of the parameter, along one of its own.

        What shows a part of a width reads it at fixed places.
        """
        size, dims = self.parameter.shape[p], varying(self.places[p])
        if len(dims) != 1:
            return False
        shown = core(self.places[p]).reshape(-1)
        return size > 1 and bool((torch.bincount(shown, minlength=size) > 0).all())
