"""The decay of live parameters: the whole method against its literal twin, and its fine print."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import decayprune as dp
from reference.dpm import Literal, Settings, tiny

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def library(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, s: Settings
) -> dp.DecayPruner:
    rectify = None
    if s.rule is not None:
        rectify = dp.Rectify(
            rule=s.rule,
            t_rate=s.t_rate,
            t_len=s.t_len,
            warm_up=s.warm_up,
            extra=s.extra,
            judge_at=s.judge_at,
            cool_down=s.cool_down,
        )
    return dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(macs=s.target),
        schedule=dp.Schedule(
            start=s.start, stop=s.stop, rounds=s.rounds, decay_steps=s.decay_steps
        ),
        rectify=rectify,
        slices="all" if s.all_slices else "carriers",
        scope=s.scope,
        decay="cosine" if s.cosine else "linear",
        round_to=None,
    )


SETTINGS = {
    "smooth": Settings(rule=None),
    "tournament": Settings(),
    "thresholds": Settings(rule="thresholds", t_rate=0.1, t_len=-0.05, cool_down=0.5),
    "thresholds that empty the pool": Settings(
        rule="thresholds", t_rate=-1, t_len=-9, warm_up=0.3, cool_down=9, target=0.2, rounds=1
    ),
    "cosine, late": Settings(cosine=True, start=5, rounds=4),
    "all slices": Settings(all_slices=True, decay_steps=9),
    "all slices, thresholds": Settings(
        rule="thresholds", all_slices=True, t_rate=0.1, t_len=-0.1, cosine=True
    ),
    "abrupt": Settings(rule=None, decay_steps=1),
    "common threshold, smooth": Settings(rule=None, scope="global"),
    "common threshold, tournament": Settings(scope="global"),
    "common threshold, thresholds": Settings(
        rule="thresholds", t_rate=0.1, t_len=-0.05, cool_down=0.5, scope="global"
    ),
    "last round at the stop": Settings(rounds=5, stop=5),
    "decays overlap": Settings(rounds=6, stop=12, decay_steps=8),
}


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_the_literal_twin(name: str, optimizer: str) -> None:
    settings = SETTINGS[name]
    model, inputs = tiny()
    twin = copy.deepcopy(model)
    targets = torch.randint(4, (8,))
    ours, theirs = (OPTIMIZERS[optimizer](m.parameters()) for m in (model, twin))
    pruner = library(model, ours, inputs, settings)
    literal = Literal(twin, theirs, settings)

    for step in range(settings.stop + settings.decay_steps + 3):
        noise = torch.randn_like(inputs) * 0.3
        for m in (model, twin):
            m.zero_grad()
            F.cross_entropy(m(inputs + noise), targets).backward()
        ours.step()
        pruner.step()
        literal.remember()
        theirs.step()
        literal.follow()
        for (key, ours_), theirs_ in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(
                ours_, theirs_, rtol=1e-4, atol=1e-6, msg=f"{key} differs after step {step}"
            )

    found = [(e.step, e.kind, e.structure) for e in pruner.events]
    assert found == [event[:3] for event in literal.events]
    for event, (*_, rate, length, work) in zip(pruner.events, literal.events, strict=True):
        if event.kind == "decay" or settings.rule is None:
            assert (event.c_rate, event.c_len, event.work) == (None, None, None)
            continue
        assert event.c_rate == pytest.approx(rate, rel=1e-3, abs=1e-4)
        assert event.c_len == pytest.approx(length, rel=1e-3, abs=1e-4)
        assert event.work == pytest.approx(work, rel=1e-3, abs=1e-6)
    assert pruner.finished
    assert set(pruner.lifecycle.committed.nonzero().flatten().tolist()) == literal.pruned


def test_the_settings_of_the_twin_really_release() -> None:
    """The comparison above is worth something only if all kinds of moves happen."""
    for name in ("tournament", "thresholds", "thresholds that empty the pool"):
        model, inputs = tiny()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = library(model, optimizer, inputs, SETTINGS[name])
        for _ in range(36):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), torch.arange(8) % 4).backward()
            optimizer.step()
            pruner.step()
        kinds = {event.kind for event in pruner.events}
        assert kinds == {"decay", "release", "prune"}, name
