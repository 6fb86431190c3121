"""Sums over all structures against loops over one at a time, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import accelerator
from decayprune.structures import edits, sums
from reference import ops as slow
from zoo import TRACEABLE, traced


@pytest.mark.parametrize("carriers", [False, True], ids=["all", "carriers"])
@pytest.mark.parametrize("case", TRACEABLE)
class TestAgainstLoops:
    def test_norms_of_all_structures(self, case: str, carriers: bool) -> None:
        structures, tensors = traced(case)
        slices = sums.labelled(structures, carriers=carriers)
        found = sums.sum_products(slices, structures.num_structures, tensors).sqrt()
        expected = [
            slow.norm(structures, s, tensors, carriers=carriers)
            for s in range(structures.num_structures)
        ]
        torch.testing.assert_close(found, found.new_tensor(expected), rtol=1e-12, atol=1e-12)


def test_every_case_but_the_fixed_ones_has_structures() -> None:
    empty = {name for name in TRACEABLE if not traced(name)[0].num_structures}
    assert len(empty) < len(TRACEABLE) / 4


def test_blocks_do_not_change_a_large_sum() -> None:
    # Larger than the block of 2**16 numbers, along both dimensions, with a ragged last block.
    weight = torch.randn(331, 67, 3, 3)
    labels = [torch.arange(331) % 7 - 1, torch.arange(67) % 5 - 1]
    slices = [sums.Labelled("w", dim, label) for dim, label in enumerate(labels)]
    found = sums.sum_products(slices, 6, {"w": weight}, {"w": weight.abs()})
    product = (weight * weight.abs()).double()
    expected = torch.zeros(6, dtype=torch.float64)
    for dim, label in enumerate(labels):
        for index, owner in enumerate(label.tolist()):
            if owner >= 0:
                expected[owner] += product.select(dim, index).sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-2)


def test_strides_do_not_matter() -> None:
    weight = torch.randn(128, 80, 3, 3)
    slices = [sums.Labelled("w", 0, torch.arange(128)), sums.Labelled("w", 1, torch.arange(80))]
    plain = sums.sum_products(slices, 128, {"w": weight})
    last = weight.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sums.sum_products(slices, 128, {"w": last}), plain)


def test_roles_choose_slices() -> None:
    structures, _ = traced("chain")
    affine = {item.name for item in sums.labelled(structures, ("affine",))}
    assert affine == {"1.weight", "1.bias"}
    assert not any("running" in item.name for item in sums.labelled(structures))


HALVES = [  # 300 ** 2 overflows float16; 4096 ones added in bfloat16 stop at 256
    (torch.full((1, 4), 300.0, dtype=torch.float16), 360_000.0),
    (torch.ones(1, 4096, dtype=torch.bfloat16), 4096.0),
]


@pytest.mark.parametrize(("tensor", "expected"), HALVES, ids=["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(tensor: Tensor, expected: float) -> None:
    slices = [sums.Labelled("w", 0, torch.tensor([0]))]
    assert sums.sum_products(slices, 1, {"w": tensor}).tolist() == [expected]


class TestTotals:
    OWNER = torch.tensor([2, 0, 5, 2, 0, 4, 2, 3, 5])  # 5: of none; 1 owns nothing

    @pytest.mark.parametrize("columns", [(), (6,)], ids=str)
    @pytest.mark.parametrize("device", [sums.CPU, accelerator.DEVICE], ids=str)
    def test_are_sums_of_what_belongs_together(
        self, device: torch.device, columns: tuple[int, ...]
    ) -> None:
        values = torch.randn(9, *columns, dtype=torch.float64)
        expected = torch.stack([values[s == self.OWNER].sum(0) for s in range(5)])
        with accelerator.simulated():
            found = sums.Totals(self.OWNER, 5, device).of(values.to(device)).cpu()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    def test_of_nothing_are_zeros(self) -> None:
        nothing = torch.zeros(0, dtype=torch.int64)
        with accelerator.simulated():
            values = torch.zeros(0).to(accelerator.DEVICE)
            found = sums.Totals(nothing, 3, accelerator.DEVICE).of(values).cpu()
        assert found.tolist() == [0, 0, 0]

    def test_an_accelerator_that_adds_in_any_order_gives_the_same_bits(self) -> None:
        """Ranks that read the same weights would else pick different structures."""
        weights = {"w": torch.randn(64, 50), "b": torch.randn(64)}
        labels = torch.arange(64) % 3
        slices = [sums.Labelled("w", 0, labels), sums.Labelled("b", 0, labels)]
        with accelerator.simulated():
            there = {name: tensor.to(accelerator.DEVICE) for name, tensor in weights.items()}
            pick = edits.picked(slices, torch.tensor([True, False, True]), there)
            reads = {
                "squares": lambda: sums.sum_products(slices, 3, there),
                "products": lambda: sums.sum_products(slices, 3, there, there),
                "some squares": lambda: edits.squares(pick, there),
                "some products": lambda: edits.dot(pick, there, there),
            }
            found = {
                name: {tuple(read().tolist()) for _ in range(8)} for name, read in reads.items()
            }
            values = torch.randn(640).to(accelerator.DEVICE)
            index = (torch.arange(640) % 3).to(accelerator.DEVICE)
            any_order = {
                tuple(
                    torch.zeros(3, device=accelerator.DEVICE).index_add(0, index, values).tolist()
                )
                for _ in range(8)
            }
        assert {name: len(bits) for name, bits in found.items()} == dict.fromkeys(reads, 1)
        assert len(any_order) > 1  # the simulator does add in any order
