"""The way back leads back, whatever comes in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from decayprune.surgery.undo import Undo


def test_last_first_and_only_once() -> None:
    undo, steps = Undo(), []
    undo.note(lambda: steps.append(1))
    undo.note(lambda: steps.append(2))
    undo.run()
    undo.run()
    assert steps == [2, 1]


def test_a_module_gets_its_class_and_attributes_back() -> None:
    class Other(nn.Linear):
        pass

    module, undo = nn.Linear(3, 4), Undo()
    weight = module.weight
    undo.keep(module)
    module.__class__ = Other
    module.out_features, module.new = 2, "new"
    del module.in_features
    undo.run()
    assert type(module) is nn.Linear
    assert (module.in_features, module.out_features) == (3, 4)
    assert not hasattr(module, "new")
    assert module.weight is weight


@pytest.mark.parametrize("change", [lambda d: d.update(a=2), lambda d: d.pop("a", None)])
@pytest.mark.parametrize("before", [{}, {"a": 1}])
def test_an_entry_comes_back_or_goes(before: dict, change: Callable[[dict], Any]) -> None:
    mapping, undo = dict(before), Undo()
    undo.keep_item(mapping, "a")
    change(mapping)
    undo.run()
    assert mapping == before


def test_values_come_back_in_place() -> None:
    parameter, undo = nn.Parameter(torch.arange(3.0)), Undo()
    place = parameter.data_ptr()
    undo.keep_values(parameter)
    with torch.no_grad():
        parameter.zero_()
    undo.run()
    assert parameter.tolist() == [0, 1, 2]
    assert parameter.data_ptr() == place


def test_a_second_interrupt_does_not_stop_the_undoing() -> None:
    undo, steps, strikes = Undo(), [], iter([True, True, False])

    def struck() -> None:
        if next(strikes):
            raise KeyboardInterrupt
        steps.append(2)

    undo.note(lambda: steps.append(1))
    undo.note(struck)
    with pytest.raises(KeyboardInterrupt):
        undo.run()
    assert steps == [2, 1]


def test_what_never_happened_is_undone_without_harm() -> None:
    module, mapping, undo = nn.Linear(2, 2), {"a": 1}, Undo()
    before = module.weight.detach().clone()
    undo.keep(module)
    undo.keep_item(mapping, "a")
    undo.keep_values(module.weight)
    undo.run()
    assert mapping == {"a": 1}
    assert torch.equal(module.weight, before)
