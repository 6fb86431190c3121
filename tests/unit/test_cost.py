"""Costs at any widths are those of the model that is really cut to them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import decayprune as dp
from cases import CASES
from decayprune.cost import CostModel
from decayprune.structures import StructureMap, trace
from decayprune.surgery.trial import refuse_uncuttable
from reference import cut as slow
from reference import dpm


def cost_of(model: nn.Module, structures: StructureMap) -> CostModel:
    return CostModel(structures, {name: p.shape for name, p in model.named_parameters()})


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_model_predicts_what_a_cut_leaves(case: str) -> None:
    model, inputs = CASES[case]()
    structures = refuse_uncuttable(model, trace(model, inputs), inputs)
    cost = cost_of(model, structures)
    assert cost.params(cost.sizes) == parameters(model)
    gone = {group.start + i for group in structures.groups for i in range(group.size // 2)}
    mask = torch.zeros(structures.num_structures, dtype=torch.bool)
    mask[list(gone)] = True
    kept = cost.keep_counts(mask)
    small = slow.cut(model, structures, gone)
    assert cost.params(kept) == parameters(small)
    again = cost_of(small, trace(small, inputs))
    assert cost.macs(kept) == again.macs(again.sizes)
    assert not gone or cost.params(kept) < cost.params(cost.sizes)


@pytest.mark.parametrize(
    "case", ["chain", "residual", "concat", "depthwise", "grouped", "flatten", "squeeze_excite"]
)
def test_macs_are_those_of_the_flop_counter(case: str) -> None:
    model, inputs = CASES[case]()
    structures = trace(model, inputs)
    cost = cost_of(model, structures)
    counter = FlopCounterMode(display=False)
    with counter:
        slow.run(model, inputs)
    assert 2 * cost.macs(cost.sizes) * len(inputs) == counter.get_total_flops()


@pytest.mark.parametrize("kept", [(10, 8), (1, 1), (3, 7), (9, 2)])
def test_formulas_written_by_hand(kept: tuple[int, int]) -> None:
    model, inputs = dpm.tiny()
    cost = cost_of(model, trace(model, inputs))
    found = torch.tensor(kept)
    assert cost.macs(found) == dpm.macs(*kept)
    assert cost.params(found) == dpm.params(*kept)
    assert cost.fractions(found, ["macs", "params", "structures"]) == {
        "macs": dpm.macs(*kept) / dpm.macs(10, 8),
        "params": dpm.params(*kept) / dpm.params(10, 8),
        "structures": sum(kept) / 18,
    }


def test_all_bounds_hold_together() -> None:
    model, inputs = dpm.tiny()
    cost = cost_of(model, trace(model, inputs))
    kept = torch.tensor([5, 4])
    reached = cost.fractions(kept, ["macs", "params"])
    assert cost.meets(dp.Budget(**reached), kept)  # the bound itself is met
    for name in reached:
        assert not cost.meets(dp.Budget(**(reached | {name: reached[name] - 1e-9})), kept)


def test_the_budget_on_the_way() -> None:
    budget = dp.Budget(macs=0.4, params=0.8)
    assert budget.after(0.5).bounds == pytest.approx({"macs": 0.7, "params": 0.9})
    assert budget.after(0).bounds == {"macs": 1.0, "params": 1.0}
    assert budget.after(1) is budget


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.5, 50.0, float("nan")])
@pytest.mark.parametrize("name", ["macs", "params", "structures"])
def test_bounds_are_fractions_that_remain(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"Budget\({name}=...\) is the fraction that remains"):
        dp.Budget(**{name: bad})


def test_a_budget_bounds_something() -> None:
    with pytest.raises(ValueError, match=r"at least one bound, for example Budget\(macs=0.5\)"):
        dp.Budget()
