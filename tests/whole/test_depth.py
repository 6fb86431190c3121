"""Residual branches decay and leave whole: exact, resumable, saved, exported, beside widths."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import decayprune as dp
from residual_nets import Stack, pruner_of, residual_net, stack, train

LATER = dp.Schedule(start=1, stop=13, rounds=2, decay_steps=5)
DATA = [torch.randn(16, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
BUDGETS = {
    "branches alone": {"budget": dp.Budget(depth=0.5)},
    "and widths": {"budget": dp.Budget(depth=0.67, macs=0.4)},
    "calibrated": {"budget": dp.Budget(depth=0.67, macs=0.4), "calibrate": DATA},
    "without release": {"budget": dp.Budget(depth=0.5), "rectify": None},
}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def pruned(model: nn.Module, steps: int = 20, **options: Any) -> tuple[dp.DecayPruner, Any]:
    optimizer = adam(model)
    pruner = pruner_of(model, optimizer, schedule=LATER, **options)
    train(model, optimizer, pruner, steps)
    return pruner, optimizer


@pytest.mark.parametrize("budget", sorted(BUDGETS))
def test_a_whole_training(budget: str) -> None:
    model = stack(seed=3)
    pruner, optimizer = pruned(model, **BUDGETS[budget])
    assert pruner.finished
    expected = model.eval()(DATA[0])
    report = pruner.compact()
    assert torch.allclose(model(DATA[0]), expected, atol=1e-5)
    left = sum(isinstance(block.down, nn.Linear) for block in model.blocks)
    asked = pruner.budget.bounds
    assert left == int(asked["depth"] * 6 + 1e-9)
    assert report.params_after == sum(p.numel() for p in model.parameters())
    assert report.macs_after / report.macs_before <= asked.get("macs", 1)
    assert pruner.remaining()["depth"] == left / 6
    # What is left trains on; nobody remembers what is gone.
    live = {id(p) for p in model.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == live
    assert {id(p) for p in optimizer.state} == live
    train(model.train(), optimizer, pruner, 2)


def test_branches_resist_and_are_released() -> None:
    pruner, _ = pruned(stack(seed=3), budget=dp.Budget(depth=0.5))
    told = [event.kind for event in pruner.events]
    assert told.count("release") == 2  # of each round the one that is enrolled for it
    assert told.count("prune") == 3
    assert told.count("decay") == 5


def test_a_gate_that_was_zeroed_stays_zero_while_training_goes_on() -> None:
    model = stack()
    pruner, _ = pruned(model, steps=30)
    names = {e.layer for e in pruner.events if e.kind == "prune"}
    assert len(names) == 3
    assert not any(model.get_submodule(name).weight.any() for name in names)


@pytest.mark.parametrize("budget", ["branches alone", "calibrated"])
@pytest.mark.parametrize("steps", [2, 8, 14])
def test_it_resumes_bit_for_bit(budget: str, steps: int) -> None:
    straight = stack(seed=3)
    whole, _ = pruned(straight, **BUDGETS[budget])

    model = stack(seed=3)
    half, optimizer = pruned(model, steps, **BUDGETS[budget])
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), half.state_dict()], file)
    file.seek(0)

    again = stack(seed=7)
    moments = adam(again)
    pruner = pruner_of(again, moments, schedule=LATER, **BUDGETS[budget])
    for part, state in zip((again, moments, pruner), torch.load(file), strict=True):
        part.load_state_dict(state)
    train(again, moments, pruner, 20 - steps, first=steps)
    assert [str(event) for event in pruner.events] == [str(event) for event in whole.events]
    for one, other in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert str(pruner.compact()) == str(whole.compact())


def abrupt(model: nn.Module, inputs: Any, **bounds: float) -> dp.CompactionReport:
    """What a budget takes, gone after one step that does not train."""
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = dp.Schedule(start=0, stop=1, decay_steps=1)
    budget, options = dp.Budget(**bounds), {"rectify": None, "round_to": None}
    pruner = dp.DecayPruner(model, still, inputs, budget=budget, schedule=schedule, **options)
    found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    (found if isinstance(found, torch.Tensor) else found[0]).square().sum().backward()
    still.step()
    pruner.step()
    return pruner.compact()


@pytest.mark.parametrize("bounds", [{"depth": 0.5}, {"depth": 0.7, "macs": 0.5}])
@pytest.mark.parametrize("name", ["basic", "bottleneck", "vit", "encoder"])
def test_the_cut_is_exact_in_float64(name: str, bounds: dict[str, float]) -> None:
    model, inputs = residual_net(name)
    report = abrupt(model, inputs, **bounds)
    assert report.removed
    assert report.max_rel_error < 1e-12
    assert report.params_after == sum(p.numel() for p in model.parameters())
    model.train()(inputs).square().sum().backward()  # whatever writes in place
    counted = dp.inspect(model, inputs)  # the model as it is now, looked at anew
    assert (counted.macs, counted.params) == (report.macs_after, report.params_after)


def test_the_cut_of_bert_is_exact_in_float64() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).double()
    ids = torch.arange(20).view(2, 10)
    inputs = {"input_ids": ids, "attention_mask": (ids < 17).long(), "return_dict": False}
    assert len(dp.inspect(model, inputs, depth=True).branches) == 6
    report = abrupt(model, inputs, depth=0.5, macs=0.4)
    assert report.max_rel_error < 1e-12
    gone = [name for name, module in model.named_modules() if "Bypass" in type(module).__name__]
    assert len([name for name in gone if name.endswith("output.dense")]) == 3


def test_what_was_removed_is_saved_and_loaded(tmp_path: Path) -> None:
    model = stack(seed=3)
    pruned(model, **BUDGETS["and widths"])[0].compact()
    dp.save(tmp_path, model)
    loaded = dp.load(tmp_path, Stack())
    assert torch.equal(loaded.eval()(DATA[0]), model.eval()(DATA[0]))
    with torch.device("meta"):
        fresh = Stack()
    dp.reshape(fresh, dp.structure(model)).load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(fresh.eval()(DATA[0]), model(DATA[0]))
    assert dp.structure(fresh) == dp.structure(model)
    assert torch.equal(copy.deepcopy(model)(DATA[0]), model(DATA[0]))


def test_averages_lose_the_same_branches() -> None:
    model = stack(seed=3)
    average = torch.optim.swa_utils.AveragedModel(model)
    pruner, _ = pruned(model)
    average.update_parameters(model)
    pruner.compact(copies=average)
    shapes = [p.shape for p in model.parameters()]
    assert [p.shape for p in average.module.parameters()] == shapes
    assert average(DATA[0]).shape == (16, 4)


def test_a_second_pruner_takes_widths_of_what_is_left() -> None:
    model = stack(seed=3)
    pruned(model)[0].compact()
    again, _ = pruned(model, budget=dp.Budget(macs=0.5))
    report = again.compact()
    assert report.macs_after <= 0.5 * report.macs_before
    assert again.finished


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_it_is_exported_after_the_cut(tmp_path: Path, ending: str) -> None:
    if ending == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    model = stack(seed=3)
    pruned(model)[0].compact()
    found = dp.export(model.eval(), DATA[0], tmp_path / f"model.{ending}")
    assert found.error < 1e-5


def test_what_cannot_be_asked_for_says_why() -> None:
    model = stack()
    with pytest.raises(ValueError, match=r"knows widths only\. Bound macs beside"):
        pruner_of(model, adam(model), budget=dp.Budget(depth=0.5, latency=0.5))
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"none of this model can be removed\. None was found"):
        pruner_of(plain, adam(plain))
    with pytest.raises(ValueError, match=r"`blocks\.5\.down`: ignored"):
        pruner_of(model, adam(model), ignored_layers=["blocks"])
    with pytest.raises(ValueError, match=r"cannot be reached.*macs=0\."):
        pruner_of(model, adam(model), budget=dp.Budget(depth=0.8, macs=0.001))
    pruner_of(model, adam(model)).close()  # nobody holds the model


def test_without_the_bound_no_branch_is_looked_for() -> None:
    model = stack()
    pruner = pruner_of(model, adam(model), budget=dp.Budget(macs=0.5))
    assert not pruner.structures.branches
    assert "depth" not in pruner.remaining()


def test_widths_inside_of_what_leaves_hand_nothing_over() -> None:
    """A consumer that leaves itself would be written to after it was zeroed."""
    model = stack(seed=3)
    pruner, _ = pruned(model, **BUDGETS["calibrated"])
    pruner.compact()
    parts = pruner.state_dict()["compensation"]["taken"]
    assert all(bool(part["columns"].isfinite().all()) for part in parts)
    assert F.cross_entropy(model(DATA[0]), torch.zeros(16, dtype=torch.int64)).isfinite()
