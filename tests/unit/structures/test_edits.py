"""Arithmetic over a few structures against loops over one at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from decayprune.structures import StructureMap, edits, sums
from reference import ops as slow
from zoo import TRACEABLE, traced

CPU = torch.device("cpu")


def locator(structures: StructureMap, tensors: dict[str, Tensor], carriers: bool) -> edits.Locator:
    slices = sums.labelled(structures, carriers=carriers)
    return edits.Locator(slices, structures.num_structures, tensors, CPU)


def some(structures: StructureMap, every: int = 2) -> Tensor:
    """Every other structure: in most cases rows and columns of one tensor overlap."""
    return torch.arange(structures.num_structures) % every == 0


def expected(structures: StructureMap, chosen: Tensor, value: Callable[[int], float]) -> Tensor:
    """A value for each chosen structure, 0 for all others, in float64."""
    values = [value(s) if chosen[s] else 0.0 for s in range(structures.num_structures)]
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("every", [2, 5], ids=["many", "few"])
@pytest.mark.parametrize("carriers", [False, True], ids=["all", "carriers"])
@pytest.mark.parametrize("case", TRACEABLE)
class TestAgainstLoops:
    def test_inner_products_of_a_pick(self, case: str, carriers: bool, every: int) -> None:
        structures, tensors = traced(case)
        others = {name: torch.randn_like(tensor) for name, tensor in tensors.items()}
        chosen = some(structures, every)
        pick = locator(structures, tensors, carriers).pick(chosen)
        found = edits.dot(pick, tensors, others)
        wanted = expected(
            structures,
            chosen,
            lambda s: slow.inner(structures, s, tensors, others, carriers=carriers),
        )
        torch.testing.assert_close(found.double(), wanted, rtol=1e-12, atol=1e-12)

    def test_norms_and_scaling_of_a_pick(self, case: str, carriers: bool, every: int) -> None:
        structures, tensors = traced(case)
        chosen = some(structures, every)
        ids = chosen.nonzero().flatten().tolist()
        factors = torch.rand(structures.num_structures, dtype=torch.float64) + 0.5
        pick = locator(structures, tensors, carriers).pick(chosen)
        found = {name: tensor.clone() for name, tensor in tensors.items()}
        edits.scale_(pick, found, factors)
        by_id = factors[ids].tolist()
        scaled = slow.scale(structures, ids, by_id, tensors, carriers=carriers)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, scaled[name], rtol=1e-12, atol=0)
        norms = expected(
            structures, chosen, lambda s: slow.norm(structures, s, tensors, carriers=carriers)
        )
        lengths = edits.squares(pick, tensors).sqrt().double()
        torch.testing.assert_close(lengths, norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize("every", [2, 5], ids=["many", "few"])
@pytest.mark.parametrize("case", TRACEABLE)
def test_zeroing(case: str, every: int) -> None:
    structures, tensors = traced(case)
    chosen = some(structures, every)
    pick = locator(structures, tensors, False).pick(chosen)
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    edits.zero_(pick, found)
    zeroed = slow.zero(structures, chosen.nonzero().flatten().tolist(), tensors)
    assert all(torch.equal(tensor, zeroed[name]) for name, tensor in found.items())


def test_zeroing_passes_over_tensors_that_are_missing() -> None:
    structures, tensors = traced("chain")
    pick = locator(structures, tensors, False).pick(torch.arange(structures.num_structures) < 3)
    some_tensors = {"0.weight": tensors["0.weight"].clone()}
    edits.zero_(pick, some_tensors)
    assert not some_tensors["0.weight"][:3].any()
    assert bool(some_tensors["0.weight"][3:].all())


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("share", [1, 40, 96])
def test_many_and_few_are_read_and_scaled_alike(
    share: int, size: int, layout: torch.memory_format, dim: int
) -> None:
    """In blocks or at once, picked or whole, in any layout."""
    shape = (96, 7, size, size) if dim == 0 else (7, 96, size, size)
    weight = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
    other = torch.randn(shape, dtype=torch.float64)
    ids = torch.randperm(96)[:share]
    chosen = torch.zeros(96, dtype=torch.bool).index_fill(0, ids, True)
    slices = [sums.Labelled("w", dim, torch.arange(96))]
    pick = edits.Locator(slices, 96, {"w": weight}, CPU).pick(chosen)
    products = (weight * other).sum([d for d in range(4) if d != dim])
    found = edits.dot(pick, {"w": weight}, {"w": other})
    torch.testing.assert_close(found, torch.where(chosen, products, 0.0))
    factors = torch.rand(96, dtype=torch.float64)
    scaled = weight.clone()
    for index in ids.tolist():
        scaled.select(dim, index).mul_(factors[index])
    edits.scale_(pick, {"w": weight}, factors)
    assert torch.equal(weight, scaled)


def test_what_is_not_a_number_stays_where_it_is() -> None:
    weight = torch.ones(4, 3)
    weight[1] = torch.nan
    slices = [sums.Labelled("w", 0, torch.arange(4)), sums.Labelled("b", 0, torch.arange(4))]
    tensors = {"w": weight, "b": torch.tensor([1.0, torch.inf, 1.0, 1.0])}
    pick = edits.Locator(slices, 4, tensors, CPU).pick(torch.tensor([True, False, True, True]))
    assert edits.squares(pick, tensors).tolist() == [4, 0, 4, 4]
    edits.zero_(pick, tensors)
    assert tensors["b"].tolist() == [0, torch.inf, 0, 0]


def test_the_slices_of_some_tensors_alone() -> None:
    structures, tensors = traced("residual")
    pick = locator(structures, tensors, False).pick(some(structures))
    names = set(list(dict.fromkeys(pick.names))[::2])
    rest = set(pick.names) - names
    parts = [edits.squares(pick.only(own), tensors) for own in (names, rest)]
    torch.testing.assert_close(sum(parts), edits.squares(pick, tensors))
    assert set(pick.only(names).names) == names


def test_an_empty_pick_touches_nothing() -> None:
    structures, tensors = traced("residual")
    pick = locator(structures, tensors, False).pick(some(structures) & False)
    assert pick.names == ()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    edits.scale_(pick, tensors, torch.zeros(structures.num_structures))
    edits.zero_(pick, tensors)
    assert all(torch.equal(tensors[name], value) for name, value in before.items())
    assert edits.dot(pick, tensors, tensors).tolist() == [0] * structures.num_structures


HALVES = [  # 300 ** 2 overflows float16; 4096 ones added in bfloat16 stop at 256
    (torch.full((1, 4), 300.0, dtype=torch.float16), 360_000.0),
    (torch.ones(1, 4096, dtype=torch.bfloat16), 4096.0),
]


@pytest.mark.parametrize(("tensor", "total"), HALVES, ids=["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(tensor: Tensor, total: float) -> None:
    slices, tensors = [sums.Labelled("w", 0, torch.tensor([0]))], {"w": tensor}
    pick = edits.Locator(slices, 1, tensors, CPU).pick(torch.tensor([True]))
    assert edits.dot(pick, tensors, tensors).tolist() == [total]
    assert edits.squares(pick, tensors).tolist() == [pytest.approx(total)]


def test_a_tensor_that_is_part_of_a_width_and_of_a_gate_takes_both_factors() -> None:
    slices = [
        sums.Labelled("bias", 0, torch.tensor([0, 1, 2])),
        sums.Labelled("bias", 0, torch.tensor([3, 3, 3])),
    ]
    tensors = {"bias": torch.tensor([1.0, 2.0, 3.0])}
    pick = edits.Locator(slices, 4, tensors, CPU).pick(torch.tensor([True, False, False, True]))
    assert torch.equal(edits.squares(pick, tensors), torch.tensor([1.0, 0.0, 0.0, 14.0]))
    edits.scale_(pick, tensors, torch.tensor([0.5, 9.0, 9.0, 0.1]))
    torch.testing.assert_close(tensors["bias"], torch.tensor([0.05, 0.2, 0.3]))
    edits.zero_(pick, tensors)
    assert not tensors["bias"].any()


def test_values_are_copied_into_what_is_picked_and_nowhere_else() -> None:
    torch.manual_seed(0)
    shapes = {"vector": (6,), "rows": (6, 400), "columns": (3, 6, 2), "few": (3, 600)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    labels = torch.tensor([0, 1, -1, 2, 1, 0])
    wide = torch.full((600,), -1)
    wide[:6] = labels
    dims = {"vector": 0, "rows": 0, "columns": 1, "few": 1}
    slices = [sums.Labelled(n, d, wide if n == "few" else labels) for n, d in dims.items()]
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    for item in slices:
        for index in (item.structure == 1).nonzero().flatten().tolist():
            expected[item.name].select(item.dim, index).copy_(
                values[item.name].select(item.dim, index)
            )
    edits.copy_(edits.picked(slices, torch.tensor([False, True, False]), tensors), tensors, values)
    assert all(torch.equal(tensors[name], expected[name]) for name in shapes)
