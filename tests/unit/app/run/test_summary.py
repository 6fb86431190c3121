from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.app.run import summary
from decayprune.app.run.settings import Settings
from decayprune.latency.benchmark import Latency
from decayprune.selection.schedule import Schedule
from decayprune.structures.structure_map import Refusal

LATENCY = Latency(4.0, 2.0, 100, 40, 8, 5, 1, "a machine")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_steps_are_those_of_the_whole_run() -> None:
    refusals = (Refusal("fc", 10, "the model's output"),)
    host = SimpleNamespace(structures=SimpleNamespace(refusals=refusals))
    schedule = Schedule(stop=30, decay_steps=8)
    found: Any = SimpleNamespace(host=host, schedule=schedule, rounds=(1, 15))
    assert summary.planned(found, 100) == {
        "rounds": [101, 115],
        "limits": {"stop": 130, "decay_steps": 8},
        "refusals": [{"layer": "fc", "width": 10, "reason": "the model's output"}],
    }


def test_the_report_names_budgets_that_were_set_and_the_host_of_another() -> None:
    ours = summary.report(Settings(budget=0.3), {"seconds": 1.0}, LATENCY)
    assert (ours["host"], ours["budget"], ours["seconds"]) == (None, {"macs": 0.3}, 1.0)
    assert ours["settings"]["host"] == "default"
    theirs = summary.report(Settings(host="hesso", params_budget=0.4), {}, LATENCY)
    assert (theirs["host"], theirs["budget"]) == ("hesso", {"params": 0.4})
    assert (ours["latency_before_ms"], ours["latencies"]["speedup"]) == (4.0, 2.0)
    assert ours["machine"]["threads"] == LATENCY.threads


def test_a_model_that_is_compiled_where_it_runs_counts_as_it_is_there() -> None:
    plain = summary.report(Settings(), {}, LATENCY)
    assert plain["latency_form"] == "eager"
    found = summary.report(Settings(), {}, replace(LATENCY, compiled=(3.0, 1.0)))
    assert (found["latency_before_ms"], found["latency_after_ms"]) == (3.0, 1.0)
    assert found["latency_form"] == "compiled"


def test_the_home_folder_does_not_say_who_lives_there() -> None:
    inside = Settings(data_dir=str(Path.home() / "data"))
    assert summary.report(inside, {}, LATENCY)["settings"]["data_dir"] == str(Path("~") / "data")
    outside = replace(inside, data_dir="elsewhere")
    assert summary.report(outside, {}, LATENCY)["settings"]["data_dir"] == "elsewhere"


def test_what_was_saved_has_to_give_the_same_outputs(tmp_path: Path) -> None:
    model, inputs = net(), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(macs=0.5),
        schedule=dp.Schedule(stop=0, decay_steps=1),
        rectify=None,
    )
    while not pruner.finished:
        model(inputs).sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    cut = pruner.compact()
    assert summary.compacted(cut)["widths"][0]["after"] == model[0].out_features
    dp.save(tmp_path, model)
    summary.check_saved(tmp_path, net(), model, inputs)
    with torch.no_grad():
        model[0].bias += 1
    with pytest.raises(RuntimeError, match=r"should give exactly the outputs.*differ by up to"):
        summary.check_saved(tmp_path, net(), model, inputs)
