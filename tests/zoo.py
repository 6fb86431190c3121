"""Every case of the zoo, traced once."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from cases import CASES
from decayprune.structures import StructureMap, trace
from reference.cut import tensors

TRACEABLE = sorted(CASES)


@cache
def traced(name: str) -> tuple[StructureMap, dict[str, Tensor]]:
    """The structures of a case and its weights by name; do not change them."""
    model, inputs = CASES[name]()
    structures = trace(model, inputs)
    names = {item.name for item in structures.slices if item.role != "buffer"}
    return structures, {n: t.detach() for n, t in tensors(model).items() if n in names}
