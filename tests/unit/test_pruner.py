"""What a user reads from a pruner: budget, events, when it is finished; and a few pinned values."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

import decayprune as dp
from cases import CASES
from decayprune.selection.by_importance import Scope
from loops import INPUTS, OPTIMIZERS, Net, net, pruner_for, train


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("rule", [None, "thresholds", "tournament"])
@pytest.mark.parametrize("round_to", [None, 2])
def test_the_budget_is_met_whatever_is_released(
    scope: Any, rule: Any, round_to: int | None
) -> None:
    rectify = None if rule is None else dp.Rectify(rule=rule, t_rate=0, t_len=-1, extra=0.4)
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    budget = dp.Budget(macs=0.5, params=0.6)
    pruner = pruner_for(
        model, optimizer, budget=budget, rectify=rectify, scope=scope, round_to=round_to
    )
    train(model, optimizer, 24, pruner)
    assert pruner.finished
    left = pruner.remaining()
    assert left["macs"] <= 0.5
    assert left["params"] <= 0.6
    report = pruner.compact()
    assert report.macs_after / report.macs_before == left["macs"]
    assert report.params_after == sum(p.numel() for p in model.parameters())
    for _, before, after in report.widths:
        assert after == before or after % (round_to or 1) == 0


def test_finished_is_true_once_the_last_decay_has_ended() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer, rectify=None)  # rounds at 2, 6 and 10; decays last 5
    finished = []
    for step in range(18):
        train(model, optimizer, 1, pruner, first=step)
        finished.append(pruner.finished)
    assert finished == [step >= 14 for step in range(1, 19)]


def test_rounds_overlap_and_count_commitments() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    schedule = dp.Schedule(start=1, stop=9, rounds=4, decay_steps=7)
    pruner = pruner_for(model, optimizer, schedule=schedule, rectify=None)
    for step in range(1, 16):
        train(model, optimizer, 1, pruner, first=step)
        begun = schedule.rounds_begun(step)
        assert pruner.remaining()["macs"] <= 1 - 0.5 * begun / 4
    starts = sorted({e.step for e in pruner.events if e.kind == "decay"})
    ends = sorted({e.step for e in pruner.events if e.kind == "prune"})
    assert starts == [1, 3, 5, 7]
    assert ends == [7, 9, 11, 13]  # the step that picks already shrinks


def test_every_structure_has_a_legal_history() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    rule = dp.Rectify(rule="thresholds", t_rate=0.0, t_len=-1.0, warm_up=0.2, cool_down=0.5)
    pruner = pruner_for(model, optimizer, rectify=rule)
    train(model, optimizer, 24, pruner)
    after = {None: {"decay"}, "decay": {"release", "prune"}, "release": {"decay"}, "prune": set()}
    last: dict[int, str] = {}
    for event in pruner.events:
        assert event.kind in after[last.get(event.structure)]
        last[event.structure] = event.kind
        assert event.layer == pruner.structures.layer_of(event.structure)
        assert event.index == int(pruner.structures.index[event.structure])
    assert "release" in {event.kind for event in pruner.events}
    assert [e.step for e in pruner.events] == sorted(e.step for e in pruner.events)


def test_slices_that_training_would_revive_stay_zero() -> None:
    """A sigmoid between maps zero to one half: an all-zero structure is no fixed point."""
    torch.manual_seed(0)
    model, inputs = CASES["sigmoid"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    schedule = dp.Schedule(stop=2, decay_steps=2)
    pruner = pruner_for(
        model, optimizer, inputs=inputs, schedule=schedule, rectify=None, budget=dp.Budget(macs=0.6)
    )
    for _ in range(12):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        pruner.step()
    assert pruner.finished
    report = pruner.compact()
    assert report.max_rel_error < 1e-9
    assert report.removed > 0


def test_ignored_layers_are_left_alone() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(
        model, optimizer, ignored_layers=["a*", model.c], budget=dp.Budget(macs=0.7), rectify=None
    )
    train(model, optimizer, 24, pruner)
    pruner.compact()
    assert model.a[0].out_channels == 10
    assert model.c.out_channels == 8
    assert model.stem[0].out_channels < 12


def test_a_callable_importance_decides() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    seen = []

    def last_goes_first(structures: Any, parameters: Any) -> torch.Tensor:
        seen.append(sorted(parameters))
        return -structures.index.float() + 100

    pruner = pruner_for(model, optimizer, importance=last_goes_first, rectify=None)
    train(model, optimizer, 24, pruner)
    assert len(seen) == 3
    assert "stem.0.weight" in seen[0]
    report = pruner.compact()
    for index in report.kept.values():
        assert index.tolist() == list(range(index.numel()))


def test_state_is_small() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = pruner_for(model, optimizer)
    state = sum(t.numel() * t.element_size() for t in pruner.lifecycle.state_dict().values())
    assert state <= 0.05 * sum(p.numel() * p.element_size() for p in model.parameters())
    assert state <= 64 * pruner.structures.num_structures


def test_pinned_values() -> None:
    """A run that must not change by accident: what decays, what is released, what remains."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = pruner_for(model, optimizer, inputs=INPUTS, scope="global")
    train(model, optimizer, 24, pruner)
    kinds = [event.kind for event in pruner.events]
    counts = (kinds.count("decay"), kinds.count("release"), kinds.count("prune"))
    assert counts == (19, 11, 8)
    assert pruner.remaining() == pytest.approx(
        {"macs": 0.4866184, "params": 0.4973988, "structures": 22 / 30}
    )
    first = next(event for event in pruner.events if event.kind == "prune")
    assert (first.step, first.layer, first.index) == (6, "stem.0", 11)
    figures = (first.c_rate, first.c_len, first.work)
    assert figures == pytest.approx((-0.93816, -0.0014254, -0.0098059), rel=1e-2)
