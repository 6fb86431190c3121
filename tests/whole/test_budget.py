"""A budget is met, and nothing of it is wasted, whatever was released."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import decayprune as dp
from decayprune.app.run import models

EXAMPLE = torch.zeros(1, 1, 8, 8)
ABRUPT: dict[str, Any] = {"schedule": dp.Schedule(stop=0, decay_steps=1), "rectify": None}
JUDGED: dict[str, Any] = {
    "schedule": dp.Schedule(stop=4, decay_steps=4),
    "rectify": dp.Rectify(rule="tournament", extra=0.4, judge_at=0.5),
}


def pruned(seed: int, budget: float, steps: int = 9, **options: Any) -> dp.DecayPruner:
    """A pruner of a small ResNet that has finished."""
    torch.manual_seed(seed)
    model = models.resnet8(in_channels=1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 1.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"round_to": None, **options}  # whatever the machine
    pruner = dp.DecayPruner(model, optimizer, EXAMPLE, budget=dp.Budget(macs=budget), **options)
    for _ in range(steps):
        F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.arange(4)).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.finished
    return pruner


@pytest.mark.parametrize("budget", [0.5, 0.2])
def test_nothing_that_fits_the_budget_is_left_out(budget: float) -> None:
    for seed in range(3):
        pruner = pruned(seed, budget, steps=1, **ABRUPT)
        kept = pruner.cost.keep_counts(pruner.lifecycle.committed)
        assert pruner.cost.meets(pruner.budget, kept)
        for group in (kept < pruner.cost.sizes).nonzero().flatten().tolist():
            kept[group] += 1
            assert not pruner.cost.meets(pruner.budget, kept)
            kept[group] -= 1


def test_an_abrupt_cut_wastes_nothing_on_a_tournament_that_cannot_be_held() -> None:
    judged = pruned(0, 0.25, schedule=dp.Schedule(stop=9, decay_steps=1), rectify=dp.Rectify())
    plain = pruned(0, 0.25, schedule=dp.Schedule(stop=9, decay_steps=1), rectify=None)
    assert judged.remaining() == plain.remaining()


def test_a_tournament_releases_past_what_does_not_fit() -> None:
    pruner = pruned(0, 0.5, **JUDGED)
    kept = pruner.cost.keep_counts(pruner.lifecycle.committed)
    assert pruner.cost.meets(pruner.budget, kept)
    assert any(event.kind == "release" for event in pruner.events)
    for group in set(pruner.structures.group_of[pruner.lifecycle.committed].tolist()):
        kept[group] += 1
        assert not pruner.cost.meets(pruner.budget, kept)
        kept[group] -= 1
