from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import decayprune as dp
from decayprune.recipes import models
from decayprune.recipes.study.controls import RandomRelease, cut_to
from decayprune.recipes.study.snug import Snug

EXAMPLE = torch.zeros(1, 1, 8, 8)


def varied(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = models.resnet8(in_channels=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.5)
    return model


def pruned(wrap: Any, seed: int, budget: float, steps: int = 9, **options: Any) -> dp.DecayPruner:
    """A pruner that has finished, with its selector wrapped."""
    model = varied(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = dp.DecayPruner(model, optimizer, EXAMPLE, budget=dp.Budget(macs=budget), **options)
    pruner._selector = wrap(pruner._selector)
    for _ in range(steps):
        loss = F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.arange(4))
        loss.backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.finished
    return pruner


ABRUPT: dict[str, Any] = {"schedule": dp.Schedule(stop=0, decay_steps=1), "rectify": None}
JUDGED: dict[str, Any] = {
    "schedule": dp.Schedule(stop=4, decay_steps=4),
    "rectify": dp.Rectify(rule="tournament", extra=0.4, judge_at=0.5),
}


@pytest.mark.parametrize("budget", [0.5, 0.2])
def test_nothing_that_fits_the_budget_is_left_out(budget: float) -> None:
    for seed in range(3):
        pruner = pruned(Snug, seed, budget, steps=1, **ABRUPT)
        kept = pruner.cost.keep_counts(pruner.state.committed)
        assert pruner.cost.meets(pruner.budget, kept)
        for group in (kept < pruner.cost.sizes).nonzero().flatten().tolist():
            more = kept.clone()
            more[group] += 1
            assert not pruner.cost.meets(pruner.budget, more)


def test_a_tournament_releases_past_what_does_not_fit() -> None:
    pruner = pruned(Snug, 0, 0.5, **JUDGED)
    kept = pruner.cost.keep_counts(pruner.state.committed)
    assert pruner.cost.meets(pruner.budget, kept)
    assert any(event.kind == "release" for event in pruner.events)
    # Every group of which something enrolled still went could not have kept one more.
    for group in set(pruner.structures.group_of[pruner.state.committed].tolist()):
        kept[group] += 1
        assert not pruner.cost.meets(pruner.budget, kept)
        kept[group] -= 1


def test_snug_keeps_what_the_ranking_values_most() -> None:
    plain, snug = (pruned(wrap, 1, 0.2, steps=1, **ABRUPT) for wrap in (lambda s: s, Snug))
    before, after = plain.state.committed, snug.state.committed
    assert bool((before | ~after).all())  # only ever fewer
    assert snug.remaining()["macs"] >= plain.remaining()["macs"]


def test_random_release_spares_others_at_the_same_step_and_budget() -> None:
    torch.manual_seed(0)
    ours = pruned(Snug, 0, 0.3, **JUDGED)
    torch.manual_seed(0)
    random = pruned(lambda s: RandomRelease(Snug(s), 0), 0, 0.3, **JUDGED)

    def released(pruner: dp.DecayPruner) -> dict[int, int]:
        return {e.structure: e.step for e in pruner.events if e.kind == "release"}

    assert set(released(ours)) != set(released(random))
    assert set(released(ours).values()) == set(released(random).values())
    assert random.cost.meets(random.budget, random.cost.keep_counts(random.state.committed))


def test_a_small_network_has_the_widths_asked_for_and_trains() -> None:
    model = varied(0)
    pruner = pruned(lambda s: s, 0, 0.3, **ABRUPT)
    kept = pruner.cost.keep_counts(pruner.state.committed).tolist()
    report = cut_to(model, EXAMPLE, kept)
    assert report.macs_after == pruner.cost.macs(torch.tensor(kept))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    for parameter in model.parameters():
        assert bool(parameter.isfinite().all())
    assert all(
        bool((m.weight == 1).all()) for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    )
    with pytest.raises(ValueError, match="Expected widths"):
        cut_to(varied(0), EXAMPLE, [1])
