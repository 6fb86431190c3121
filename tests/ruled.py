"""One operator between two linear layers: what its rule leaves free, and why not the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cases import Lambda
from decayprune.structures import StructureMap, trace
from reference.cut import cut, error, run, zeroed

Between = Callable[[Tensor], Any]


def traced(
    between: Between, width: int = 6, read: int | None = None, shape: tuple[int, ...] = (2, 4)
) -> tuple[nn.Module, Tensor, StructureMap]:
    """A model whose layer ``a`` has a width, which ``b`` reads after the operator."""
    model = Lambda(
        lambda m, x: m.b(between(m.a(x))),
        a=nn.Linear(shape[-1], width),
        b=nn.Linear(width if read is None else read, 3),
    ).double()
    inputs = torch.randn(shape, dtype=torch.float64)
    return model, inputs, trace(model, inputs)


def groups(between: Between, **options: Any) -> list[tuple[int, int]]:
    """(structures, indices each) of every group; each is cut once and compared with zeros."""
    model, inputs, structures = traced(between, **options)
    for group in structures.groups:
        gone = {group.start}
        found = run(cut(model, structures, gone), inputs)
        assert error(run(zeroed(model, structures, gone), inputs), found) < 1e-10
    return [(group.size, group.width) for group in structures.groups]


def reason(between: Between, **options: Any) -> str:
    """Why the width of ``a`` stays whole, without the line of the test that is to blame."""
    structures = traced(between, **options)[2]
    assert not structures.num_structures
    found = next(item.reason for item in structures.refusals if item.layer == "a")
    return found.partition(" (")[0]
