from typing import Any

import pytest
import torch
from torch import nn

from decayprune.app.run import models
from decayprune.app.run.methods import HOSTS, Plan, Pruning
from decayprune.app.study.controls import RandomRelease
from decayprune.app.study.plan import build, plan
from decayprune.app.study.trial import Training, Trial
from decayprune.method.rectify import Rectify

EXAMPLE = torch.zeros(1, 1, 8, 8)
STEPS = 430


def network() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet8(in_channels=1)


def trial(host: str, variant: str, **options: Any) -> Trial:
    usual = {"training": Training(epochs=1, lr=0.05)}
    return Trial(
        task="fashion-mnist", model="resnet8", host=host, variant=variant, **usual | options
    )


def planned(host: str, variant: str, **options: Any) -> Plan:
    return plan(trial(host, variant, **options), network(), STEPS)


def built(host: str, variant: str, **options: Any) -> Pruning:
    return build(trial(host, variant, **options), network(), EXAMPLE, STEPS)


@pytest.mark.parametrize("host", HOSTS)
def test_only_the_last_variant_releases(host: str) -> None:
    plans = [planned(host, variant) for variant in ("alone", "sp", "sp_sr", "rounds")]
    assert [found.rectify for found in plans] == [None, None, Rectify(), None]
    steps = [found.schedule.decay_steps for found in plans]
    smooth = 5 if host == "gate-decorator" else 43
    assert steps == [1, smooth, smooth, 1]


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_trains_with_the_optimizer_of_the_trial(host: str) -> None:
    how = Training(epochs=1, lr=0.002, weight_decay=0.05, optimizer="adamw")
    found: Any = built(host, "sp_sr", training=how).optimizer
    assert isinstance(found, torch.optim.AdamW) or found.variant == "adamw"
    assert {(g["lr"], g["weight_decay"]) for g in found.param_groups} == {(0.002, 0.05)}


def test_a_decay_of_gates_fits_into_a_tick_unless_told() -> None:
    found = planned("gate-decorator", "sp")
    assert found.schedule.decay_steps == found.options["schedule"].tick_steps == 5
    assert planned("gate-decorator", "sp", decay_steps=43).schedule.decay_steps == 43
    ticks = {"tick_steps": 7, "tock_steps": 9, "ticks": 2, "share": 0.1}
    told = planned("gate-decorator", "sp", options={"ticks": ticks, "tock_lr": None})
    assert (told.options["schedule"].tick_steps, told.options["tock_lr"]) == (7, None)
    assert "ticks" not in told.options


def test_hesso_alone_decays_by_itself_and_is_held_when_smooth() -> None:
    assert planned("hesso", "alone").options == {"decay_steps": None}
    assert planned("hesso", "sp").options == {}
    schedule = planned("hesso", "sp", start=0.1).schedule
    assert (schedule.start, schedule.stop, schedule.rounds) == (43, 43 + 107, 10)


def test_sparse_learning_comes_before_the_cut() -> None:
    found = planned("depgraph-sl", "sp", options={"reg": 1e-3, "sparse": 0.5})
    assert (found.schedule.start, found.schedule.stop) == (215, 215 + 43)
    assert found.options["reg"] == 1e-3
    assert "sparse" not in found.options
    assert "reg" not in planned("depgraph", "sp").options


def test_rounds_are_ten_abrupt_cuts_in_the_first_half() -> None:
    ours, theirs = (planned(host, "rounds").schedule for host in ("default", "depgraph"))
    assert (ours.rounds, ours.stop, ours.decay_steps) == (10, 215, 1)
    assert (theirs.rounds, theirs.stop, theirs.decay_steps) == (10, 210, 1)


def test_selection_at_random_is_a_control_of_our_own_pruner() -> None:
    found = planned("default", "random_selection", options={"scope": "global"})
    same_everywhere = {"round_to": None, "residual_width": True}
    assert found.options == {"scope": "global", "importance": "random", **same_everywhere}
    with pytest.raises(ValueError, match="a control of the default pruner"):
        planned("hesso", "random_selection")


@pytest.mark.parametrize("host", HOSTS)
def test_releases_at_random_reach_every_host(host: str) -> None:
    usual, random = (built(host, variant).host for variant in ("sp_sr", "random_release"))
    assert type(usual.rectify) is Rectify
    assert random.rectify == RandomRelease(seed=0)


def test_sparse_learning_has_a_weight_decay_of_its_own() -> None:
    options = {"reg": 5e-4, "sparse": 0.01, "sparse_weight_decay": 0.0}
    made = built("depgraph-sl", "alone", options=options)
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


def test_our_own_is_calibrated_on_so_many_batches() -> None:
    read = []

    def batches() -> Any:
        for number in range(9):
            read.append(number)
            yield torch.randn(4, 1, 8, 8), torch.zeros(4)

    options = {"calibrate": 3}
    how = trial("default", "alone", options=options)
    found: Any = build(how, network(), EXAMPLE, STEPS, batches())
    assert read == [0, 1, 2]
    assert found.host._importance == "sensitivity"
    assert how.options == options  # a trial is what its file says
