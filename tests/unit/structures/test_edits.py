"""Arithmetic over a few structures against loops over one at a time, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decayprune.structures import StructureMap, edits, sums
from reference import ops as slow
from zoo import TRACEABLE, traced


def locator(structures: StructureMap, tensors: dict[str, Tensor], carriers: bool) -> edits.Locator:
    ranks = {name: tensor.dim() for name, tensor in tensors.items()}
    return edits.Locator(
        sums.labelled(structures, carriers=carriers), structures.num_structures, ranks
    )


def some(structures: StructureMap) -> list[int]:
    """Every other structure: in most cases rows and columns of one tensor overlap."""
    return list(range(0, structures.num_structures, 2))


@pytest.mark.parametrize("carriers", [False, True], ids=["all", "carriers"])
@pytest.mark.parametrize("case", TRACEABLE)
class TestAgainstLoops:
    def test_inner_products_of_a_pick(self, case: str, carriers: bool) -> None:
        structures, tensors = traced(case)
        others = {name: torch.randn_like(tensor) for name, tensor in tensors.items()}
        ids = some(structures)
        pick = locator(structures, tensors, carriers).pick(torch.tensor(ids, dtype=torch.int64))
        found = edits.dot(pick, edits.gather(pick, tensors), edits.gather(pick, others))
        expected = [slow.inner(structures, s, tensors, others, carriers=carriers) for s in ids]
        torch.testing.assert_close(
            found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )

    def test_norms_and_scaling_of_a_pick(self, case: str, carriers: bool) -> None:
        structures, tensors = traced(case)
        ids = some(structures)
        factors = torch.rand(len(ids), dtype=torch.float64) + 0.5
        pick = locator(structures, tensors, carriers).pick(torch.tensor(ids, dtype=torch.int64))
        found = {name: tensor.clone() for name, tensor in tensors.items()}
        edits.scale_(pick, found, factors)
        expected = slow.scale(structures, ids, factors.tolist(), tensors, carriers=carriers)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=0)
        lengths = edits.squares(pick, tensors).sqrt()
        norms = [slow.norm(structures, s, tensors, carriers=carriers) for s in ids]
        torch.testing.assert_close(
            lengths.double(), torch.tensor(norms, dtype=torch.float64), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("case", TRACEABLE)
def test_zeroing(case: str) -> None:
    structures, tensors = traced(case)
    ids = some(structures)
    pick = locator(structures, tensors, False).pick(torch.tensor(ids, dtype=torch.int64))
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    edits.zero_(pick, found)
    expected = slow.zero(structures, ids, tensors)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_zeroing_passes_over_tensors_that_are_missing() -> None:
    structures, tensors = traced("chain")
    pick = locator(structures, tensors, False).pick(torch.arange(3))
    some_tensors = {"0.weight": tensors["0.weight"].clone()}
    edits.zero_(pick, some_tensors)
    assert not some_tensors["0.weight"][:3].any()
    assert bool(some_tensors["0.weight"][3:].all())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("share", [1, 40])
def test_many_and_few_columns_are_scaled_alike(
    share: int, size: int, layout: torch.memory_format
) -> None:
    weight = torch.randn(7, 96, size, size).to(memory_format=layout)
    ids = torch.randperm(96)[:share].sort().values
    locator = edits.Locator([sums.Labelled("w", 1, torch.arange(96))], 96, {"w": 4})
    factors = torch.rand(share)
    expected = weight.clone()
    for column, factor in zip(ids.tolist(), factors.tolist(), strict=True):
        expected[:, column] *= factor
    edits.scale_(locator.pick(ids), {"w": weight}, factors)
    assert torch.equal(weight, expected)


def test_an_empty_pick_touches_nothing() -> None:
    structures, tensors = traced("residual")
    pick = locator(structures, tensors, False).pick(torch.zeros(0, dtype=torch.int64))
    assert pick.names == ()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    edits.scale_(pick, tensors, torch.zeros(0))
    edits.zero_(pick, tensors)
    assert all(torch.equal(tensors[name], value) for name, value in before.items())
    values = edits.gather(pick, tensors)
    assert edits.dot(pick, values, values).shape == (0,)


HALVES = [  # 300 ** 2 overflows float16; 4096 ones added in bfloat16 stop at 256
    (torch.full((1, 4), 300.0, dtype=torch.float16), 360_000.0),
    (torch.ones(1, 4096, dtype=torch.bfloat16), 4096.0),
]


@pytest.mark.parametrize(("tensor", "expected"), HALVES, ids=["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(tensor: Tensor, expected: float) -> None:
    slices = [sums.Labelled("w", 0, torch.tensor([0]))]
    pick = edits.Locator(slices, 1, {"w": tensor.dim()}).pick(torch.tensor([0]))
    values = edits.gather(pick, {"w": tensor})
    assert edits.dot(pick, values, values).tolist() == [expected]
    assert edits.squares(pick, {"w": tensor}).tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("case", ["residual", "tied", "attention_sdpa"])
def test_what_was_gathered_is_written_back_exactly(case: str) -> None:
    structures, tensors = traced(case)
    ids = torch.tensor(some(structures))
    pick = locator(structures, tensors, False).pick(ids)
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    values = edits.gather(pick, found)
    edits.zero_(pick, found)
    assert not edits.dot(pick, edits.gather(pick, found), edits.gather(pick, found)).any()
    edits.scatter_(pick, found, values)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
