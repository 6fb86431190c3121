from typing import Any

import pytest
import torch
from torch import nn

from decayprune.app.run import models
from decayprune.app.study import methods
from decayprune.app.study.trial import HOSTS, Training, Trial
from decayprune.method.rectify import Rectify

EXAMPLE = torch.zeros(1, 1, 8, 8)
STEPS = 430


def method(host: str, variant: str, **options: Any) -> methods.Method:
    torch.manual_seed(0)
    model: nn.Module = models.resnet8(in_channels=1)
    usual = {"training": Training(epochs=1, lr=0.05)}
    trial = Trial(
        task="fashion-mnist", model="resnet8", host=host, variant=variant, **usual | options
    )
    return methods.build(trial, model, EXAMPLE, STEPS)


def built(host: str, variant: str, **options: Any) -> Any:
    return method(host, variant, **options).host


@pytest.mark.parametrize("host", HOSTS)
def test_only_the_last_variant_releases(host: str) -> None:
    rules = [built(host, variant).rectify for variant in ("alone", "sp", "sp_sr")]
    assert rules == [None, None, Rectify()]


def test_a_decay_takes_a_tenth_of_the_run() -> None:
    assert built("default", "sp").schedule.decay_steps == 43
    assert built("dhspg", "sp").decay_steps == 43
    assert built("dhspg", "alone").decay_steps == 1


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_trains_with_the_optimizer_of_the_trial(host: str) -> None:
    how = Training(epochs=1, lr=0.002, weight_decay=0.05, optimizer="adamw")
    found = method(host, "sp_sr", training=how).optimizer
    assert isinstance(found, torch.optim.AdamW) or found.variant == "adamw"
    assert {(g["lr"], g["weight_decay"]) for g in found.param_groups} == {(0.002, 0.05)}


def test_a_decay_of_gates_fits_into_a_tick_unless_told() -> None:
    assert built("gate", "alone").decay_steps == 1
    host = built("gate", "sp")
    assert host.decay_steps == host.schedule.tick_steps == 5
    assert built("gate", "sp", decay_steps=43).decay_steps == 43


def test_sparse_learning_has_a_weight_decay_of_its_own() -> None:
    options = {"reg": 5e-4, "sparse": 0.01, "sparse_weight_decay": 0.0}
    made = method("depgraph-sl", "alone", options=options)
    group, seen = made.optimizer.param_groups[0], []
    made.host.model.train()
    for _ in range(6):
        made.host.model(torch.randn(4, 1, 8, 8)).sum().backward()
        made.observe()
        seen.append(group["weight_decay"])
        made.optimizer.step()
        made.step()
        made.optimizer.zero_grad()
    assert seen == [0.0] * 4 + [5e-4] * 2
