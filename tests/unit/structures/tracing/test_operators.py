"""Counted operators equal what torch's own counter sees, before and after a cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cases import CASES, Lambda
from decayprune.structures import StructureMap, trace
from reference.cut import cut, gone, run


def counted(model: nn.Module, inputs: object) -> int:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Some releases do not count the processor's own fused attention; all count its products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() // 2


def macs(structures: StructureMap, removed: set[int]) -> int:
    total = 0
    for operator in structures.operators:
        product = operator.constant
        for labels in operator.labels:
            product *= int((~gone(labels, removed)).sum())
        total += product
    return total


@pytest.mark.parametrize("name", CASES)
def test_macs_equal_the_flop_counter(name: str) -> None:
    model, inputs = CASES[name]()
    structures = trace(model, inputs)
    assert macs(structures, set()) == counted(model, inputs)
    removed = {g.start for g in structures.groups}
    assert macs(structures, removed) == counted(cut(model, structures, removed), inputs)
    assert macs(structures, removed) < macs(structures, set())


def test_macs_of_operators_that_are_left_alone() -> None:
    def forward(m, x):
        scores = torch.einsum("b n i, b m i -> b n m", m.a(x), x)
        return torch.baddbmm(scores, scores, scores) + torch.einsum("bij->bji", scores)

    model = Lambda(forward, a=nn.Linear(4, 4))
    inputs = torch.randn(2, 3, 4)
    assert macs(trace(model, inputs), set()) == counted(model, inputs)
