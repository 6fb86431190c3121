"""A cut takes the right indices away and notes the way back before every change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cases import CASES
from decayprune.structures import trace
from decayprune.structures.twin import named_tensors
from decayprune.surgery import cut as knife
from decayprune.surgery.cut import cut, kept_indices
from decayprune.surgery.trial import refuse_uncuttable
from decayprune.surgery.undo import Undo
from interrupts import everything
from loops import INPUTS, batches, net
from reference import cut as slow


def one_each(structures: Any) -> torch.Tensor:
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[group.start + 1 for group in structures.groups if group.size > 1]] = True
    return gone


@pytest.mark.parametrize("on_trial", [False, True])
@pytest.mark.parametrize("case", sorted(CASES))
def test_it_is_the_slow_cut_and_can_be_undone(case: str, on_trial: bool) -> None:
    model, inputs = CASES[case]()
    structures = refuse_uncuttable(model, trace(model, inputs), inputs)
    gone = one_each(structures)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = named_tensors(slow.cut(model, structures, set(gone.nonzero().flatten().tolist())))
    before, undo = everything(model, optimizer), Undo()
    cut(undo, model, structures, gone, on_trial=on_trial)
    found = named_tensors(model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    undo.run()
    assert everything(model, optimizer) == before


def test_indices_that_stay_are_those_whose_structure_does() -> None:
    structures = trace(net(), INPUTS)
    gone = one_each(structures)
    kept = kept_indices(structures, gone)
    assert kept["c.weight", 0].tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert kept["fc.weight", 1].tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert ("fc.weight", 0) not in kept
    assert kept_indices(structures, torch.zeros_like(gone)) == {}


def trained() -> tuple[Any, torch.optim.Optimizer, Any]:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for images, targets in batches(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
    return model, optimizer, trace(model, INPUTS)


def test_gradients_and_state_are_cut_along() -> None:
    model, optimizer, structures = trained()
    weight = model.c.weight
    grad, moment = weight.grad.clone(), optimizer.state[weight]["exp_avg"].clone()
    rows, columns = (
        kept_indices(structures, one_each(structures))["c.weight", dim] for dim in (0, 1)
    )
    cut(Undo(), model, structures, one_each(structures), [optimizer])
    assert model.c.weight is weight
    assert torch.equal(weight.grad, grad[rows][:, columns])
    assert torch.equal(optimizer.state[weight]["exp_avg"], moment[rows][:, columns])


def test_an_interrupt_while_any_tensor_is_given_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, structures = trained()
    before, give = everything(model, optimizer), knife._give
    calls: list[int] = []

    def count(*args: Any) -> None:
        calls.append(1)
        give(*args)

    monkeypatch.setattr(knife, "_give", count)
    undo = Undo()
    cut(undo, model, structures, one_each(structures), [optimizer])
    total = len(calls)
    undo.run()
    assert total > 10
    for last in (False, True):  # before the data is given, or after it
        for number in range(1, total + 1):
            calls.clear()

            def strike(*args: Any, number: int = number, last: bool = last) -> None:
                calls.append(1)
                if len(calls) != number:
                    give(*args)
                    return
                if last:
                    give(*args)
                raise KeyboardInterrupt

            monkeypatch.setattr(knife, "_give", strike)
            undo = Undo()
            with pytest.raises(KeyboardInterrupt):
                cut(undo, model, structures, one_each(structures), [optimizer])
            undo.run()
            assert everything(model, optimizer) == before, number
