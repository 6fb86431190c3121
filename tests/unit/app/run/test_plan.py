import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from decayprune.app.run import models
from decayprune.app.run.methods import HOSTS, Plan
from decayprune.app.run.plan import plan
from decayprune.app.run.settings import Settings
from decayprune.cost import Budget
from decayprune.method.rectify import Rectify

EXAMPLE = torch.zeros(1, 1, 8, 8)
EPOCH = 40


def planned(host: str, variant: str = "sp_sr", **changes: Any) -> Plan:
    usual = {"model": "resnet8", "prune_epochs": 3, "finetune_epochs": 1}
    settings = Settings(host=host, variant=variant, **usual | changes).resolved()
    model = models.resnet8(in_channels=1)
    return plan(settings, settings.schedule(EPOCH), 4 * EPOCH, model, EXAMPLE)


@pytest.mark.parametrize(
    ("words", "found"), [(None, None), ("auto", "auto"), ("none", None), ("8", 8)]
)
def test_widths_are_what_the_library_takes(words: str | None, found: object) -> None:
    assert planned("default", round_to=words).options["round_to"] == found


def test_a_target_that_is_named_has_fast_widths_unless_any_are_asked_for() -> None:
    there = {"target": "onnxruntime", "latency_budget": 0.5}
    assert planned("default", **there).options["round_to"] is None  # as the library fills it in
    assert planned("default", **there, round_to="none").options["round_to"] == 1


def test_an_importance_of_the_user_is_blamed_by_its_option_and_may_read_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scores.py").write_text(
        "def scores(structures, parameters):\n    return structures.odd\n"
        "scores.reads_gradients = True\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = planned("default", importance="my_scores:scores").options["importance"]
    assert found.reads_gradients
    message = r"--importance my_scores:scores raised AttributeError: .*my_scores\.py, line 2"
    with pytest.raises(ValueError, match=message):
        found(object(), {})


def test_depth_is_a_bound_as_others() -> None:
    assert planned("default", depth=0.7, budget=0.6).budget == Budget(depth=0.7, macs=0.6)


@pytest.mark.parametrize("host", HOSTS)
def test_variants_differ_in_the_decay_and_in_the_release(host: str) -> None:
    plans = [planned(host, variant) for variant in ("alone", "sp", "sp_sr")]
    assert [found.rectify for found in plans] == [None, None, Rectify()]
    alone, smooth, both = (found.schedule.decay_steps for found in plans)
    assert alone == 1 < smooth == both
    assert {found.budget.bounds["macs"] for found in plans} == {0.5}


def test_the_penalty_of_otov2_grows_with_fewer_steps() -> None:
    short, long = planned("dhspg"), planned("dhspg", prune_epochs=6)
    assert short.options["lmbda"] > long.options["lmbda"] > 1e-3
    assert short.options["lmbda"] == pytest.approx(20 / (0.1 * short.schedule.stop))


def test_hesso_has_ten_periods_unless_told_and_alone_decays_by_itself() -> None:
    assert planned("hesso").schedule.rounds == 10
    assert planned("hesso", rounds=3).schedule.rounds == 3
    assert planned("hesso").options == {}
    assert planned("hesso", "alone").options == {"decay_steps": None}


def test_depgraph_ignores_what_cannot_be_cut_and_needs_time_for_its_rounds() -> None:
    (ignored,) = planned("depgraph").options["ignored_layers"]
    assert isinstance(ignored, torch.nn.Linear)
    with pytest.raises(ValueError, match=r"--rounds 9 leaves 11 steps .* --host depgraph needs 40"):
        planned("depgraph", rounds=9, decay_steps=20)


def test_sparse_learning_takes_half_of_the_time_at_the_most() -> None:
    schedule = planned("depgraph-sl").schedule
    assert (schedule.start, schedule.stop, schedule.decay_steps) == (52, 104, 16)
    tight = planned("depgraph-sl", rounds=2, decay_steps=20)
    assert tight.schedule.start == tight.schedule.stop - 2 * tight.round_steps == 20


def test_a_decay_of_gates_fits_into_a_tick_unless_told() -> None:
    found = planned("gate-decorator")
    assert found.schedule.decay_steps == found.options["schedule"].tick_steps
    assert planned("gate-decorator", decay_steps=30).schedule.decay_steps == 30
