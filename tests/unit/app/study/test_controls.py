from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import decayprune as dp
from decayprune.app.run import models
from decayprune.app.study.controls import RandomRelease, cut_to

EXAMPLE = torch.zeros(1, 1, 8, 8)


def varied(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = models.resnet8(in_channels=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.5)
    return model


def pruned(seed: int, budget: float, steps: int = 9, **options: Any) -> dp.DecayPruner:
    """A pruner that has finished."""
    model = varied(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"round_to": None, **options}  # whatever the machine
    pruner = dp.DecayPruner(model, optimizer, EXAMPLE, budget=dp.Budget(macs=budget), **options)
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


def test_random_release_spares_others_at_the_same_step_and_budget() -> None:
    torch.manual_seed(0)
    ours = pruned(0, 0.3, **JUDGED)
    torch.manual_seed(0)
    rectify = RandomRelease(seed=0, extra=0.4, judge_at=0.5)
    random = pruned(0, 0.3, **(JUDGED | {"rectify": rectify}))

    def released(pruner: dp.DecayPruner) -> dict[int, int]:
        return {e.structure: e.step for e in pruner.events if e.kind == "release"}

    assert set(released(ours)) != set(released(random))
    assert set(released(ours).values()) == set(released(random).values())
    assert random.cost.meets(random.budget, random.cost.keep_counts(random.lifecycle.committed))


def test_a_small_network_has_the_widths_asked_for_and_trains() -> None:
    model = varied(0)
    pruner = pruned(0, 0.3, **ABRUPT)
    kept = pruner.cost.keep_counts(pruner.lifecycle.committed).tolist()
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
