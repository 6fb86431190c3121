"""What is asked before a cut, what is compared after it, and what goes along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from decayprune.structures import StructureMap, trace
from decayprune.surgery.undo import Undo
from decayprune.surgery.verified import cut_verified
from interrupts import everything
from loops import INPUTS, net
from reference import cut as slow

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def zeroed() -> tuple[nn.Module, torch.optim.Optimizer, StructureMap, Tensor]:
    model = net()
    structures = trace(model, INPUTS)
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[group.start + 1 for group in structures.groups]] = True
    model = slow.zeroed(model, structures, set(gone.nonzero().flatten().tolist()))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), structures, gone


def test_it_says_how_far_outputs_differ_and_leaves_the_way_back() -> None:
    model, optimizer, structures, gone = zeroed()
    before, undo = everything(model, optimizer), Undo()
    found = cut_verified(undo, model, structures, gone, example_inputs=X)
    assert found.same
    assert found.relative < 1e-5
    assert model.c.weight.shape == (7, 11, 3, 3)
    undo.run()
    assert everything(model, optimizer) == before


def test_somebody_elses_book_is_cut_before_the_tensors_and_restored() -> None:
    model, _, structures, gone = zeroed()
    book: list[Any] = []

    def along(undo: Undo) -> None:
        undo.note(book.clear)
        book.append(tuple(model.c.weight.shape))

    undo = Undo()
    cut_verified(undo, model, structures, gone, example_inputs=X, along=along)
    assert book == [(8, 12, 3, 3)]
    undo.run()
    assert book == []


def test_a_structure_that_is_not_zero_is_named_before_anything_is_cut() -> None:
    model, optimizer, structures, gone = zeroed()
    with torch.no_grad():
        model.fc.weight[:, 1] = 1.0
    before = everything(model, optimizer)
    match = r"1 structures to remove are not zero \(the first: channel 1 of c\)"
    with pytest.raises(dp.CompactionError, match=match):
        cut_verified(Undo(), model, structures, gone, example_inputs=X)
    assert everything(model, optimizer) == before
    # A method whose structures do not hold the columns does not ask for them.
    roles = ("row", "affine")
    found = cut_verified(
        Undo(), model, structures, gone, example_inputs=X, roles=roles, tolerance=1e9
    )
    assert found.same


class Wider(nn.Module):
    """Depends on a width that it can read."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.inner.c.weight.shape[0]


def test_a_model_that_changed_is_put_back_before_the_guilty_are_named() -> None:
    inner, _, _, _ = zeroed()
    model = Wider(inner)
    structures = trace(model, INPUTS)
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[group.start + 1 for group in structures.groups]] = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = everything(model, optimizer)
    match = r"outputs changed by .*left uncut\. Groups that fail alone: inner\.c\. Put them"
    with pytest.raises(dp.CompactionError, match=match):
        cut_verified(Undo(), model, structures, gone, example_inputs=X)
    assert everything(model, optimizer) == before


def test_copies_are_zeroed_and_cut_and_come_back() -> None:
    model, optimizer, structures, gone = zeroed()
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.add_(0.1)
    before, undo = everything(model, optimizer, average), Undo()
    cut_verified(undo, model, structures, gone, example_inputs=X, copies=[average])
    assert average.c.weight.shape == (7, 11, 3, 3)
    undo.run()
    assert everything(model, optimizer, average) == before


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "dead"])
def test_outputs_that_are_constant_are_said_to_prove_little(
    dead: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, _, structures, gone = zeroed()
    if dead:
        nn.init.zeros_(model.fc.weight)
        nn.init.zeros_(model.fc.bias)
    assert cut_verified(Undo(), model, structures, gone, example_inputs=X).same
    assert ("are constant (0 everywhere)" in caplog.text) is dead
