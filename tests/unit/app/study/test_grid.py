import json
from pathlib import Path
from typing import Any

import pytest

from decayprune.app.run.methods import HOSTS, VARIANTS
from decayprune.app.study import grid
from decayprune.app.study.job import result_file
from decayprune.app.study.trial import CONTROLS, Training, Trial

BASE = Trial(
    task="digits",
    model="resnet8",
    dense=Training(epochs=1, lr=0.1),
    training=Training(epochs=4, lr=0.02),
    batch_size=16,
    budget=0.4,
    bf16=False,
    limit=160,
)


def silent(line: str) -> None:
    pass


def test_pairs_have_steps_weights_and_macs_in_common() -> None:
    alone = {"steps": 9, "dense_digest": "a", "macs_before": 1000, "params_before": 5}
    alone |= {"macs_after": 500}
    assert grid.unfair({**alone, "macs_after": 505}, alone) is None
    assert grid.unfair({**alone, "macs_after": 485}, alone) is None
    for macs, apart in ((506, "+1.2%"), (484, "-3.2%")):
        reason = str(grid.unfair({**alone, "macs_after": macs}, alone))
        assert f"{apart} of the MACs of the host alone (allowed: -3% to +1%)" in reason
    for name in ("steps", "dense_digest", "macs_before", "params_before"):
        assert name in str(grid.unfair({**alone, name: "other"}, alone))


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_runs_in_every_variant(tmp_path: Path, host: str) -> None:
    base = BASE.with_(host=host, decay_steps=4)
    if host.startswith("depgraph"):
        sparse = {"sparse": 0.2} if host == "depgraph-sl" else {}
        base = base.with_(options={"iterative_steps": 40, **sparse})
    kept = []
    # Pairs of so small a network may lie further apart than a study allows.
    for variant in VARIANTS:
        trial = base.with_(variant=variant)
        outcome = grid.run_trial(trial, tmp_path, tmp_path, silent)
        assert outcome == "done" or "of the MACs of the host alone" in outcome
        folder = "runs" if outcome == "done" else "failed"
        found = json.loads((tmp_path / folder / result_file(tmp_path, trial).name).read_text())
        assert found["steps"] == 40
        assert found["macs_after"] <= 0.4 * found["macs_before"]
        kept.append(found["macs_after"])
        assert [point["step"] for point in found["curve"]] == [10, 20, 30, 40]
        assert 0 <= found["test_accuracy"] <= 1
        assert found["events"]["pruned"] > 0
        assert set(found) >= {"versions", "machine", "commit", "wall_seconds", "dense_digest"}
    assert max(kept) == kept[0]  # never more than the host alone
    assert len(list((tmp_path / "dense").glob("*.pt"))) == 1


def test_controls_run_and_what_exists_is_not_run_again(tmp_path: Path) -> None:
    base = BASE.with_(training=Training(epochs=1, lr=0.02), decay_steps=2)
    trials = grid.with_controls([base.with_(variant=v) for v in VARIANTS])
    assert [trial.variant for trial in trials] == [*VARIANTS, *CONTROLS]
    failed = grid.run(trials, tmp_path, tmp_path, say=silent)
    assert all("of the MACs of the host alone" in reason for _, reason in failed)
    runs = {run["trial"]["variant"]: run for run in grid.read(tmp_path)}
    assert {"alone", "small", "longer"} <= set(runs)
    assert runs["longer"]["macs_after"] == runs["longer"]["macs_before"]
    assert runs["small"]["macs_after"] == runs["alone"]["macs_after"]
    told: list[str] = []
    done = [trial for trial in trials if trial.variant in runs]
    assert grid.run(done, tmp_path, tmp_path, say=told.append) == []
    assert told == ["0 trials to run"]


def test_the_same_trial_gives_the_same_figures_twice(tmp_path: Path) -> None:
    trial = BASE.with_(training=Training(epochs=1, lr=0.02), variant="alone")
    found: list[dict[str, Any]] = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        grid.run_trial(trial, folder, tmp_path, silent)
        found.append(json.loads(result_file(folder, trial).read_text()))
    for name in ("dense_digest", "test_accuracy", "curve", "macs_after", "kept", "events"):
        assert found[0][name] == found[1][name]


def test_a_run_that_breaks_says_why_and_is_tried_again(tmp_path: Path) -> None:
    short = BASE.with_(training=Training(epochs=1, lr=0.02), dense=None)
    assert "run that trial first" in grid.run_trial(short, tmp_path, tmp_path, silent)
    grid.run_trial(short.with_(variant="alone"), tmp_path, tmp_path, silent)
    trial = short.with_(options={"decay": "cosine"}, decay_steps=50, variant="alone")
    grid.run_trial(trial, tmp_path, tmp_path, silent)
    trial = trial.with_(variant="sp")
    outcome = grid.run_trial(trial, tmp_path, tmp_path, silent)
    assert "budget was not met within 10 steps" in outcome
    assert not result_file(tmp_path, trial).exists()
    kept = json.loads((tmp_path / "failed" / f"{trial.name}.json").read_text())
    assert kept["problem"] == outcome
    assert grid.run([trial], tmp_path, tmp_path, say=silent) == [(trial, outcome)]


def test_a_pair_with_other_dense_weights_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    trial = BASE.with_(training=Training(epochs=1, lr=0.02), dense=None, variant="alone")
    grid.run_trial(trial, tmp_path, tmp_path, silent)
    file = result_file(tmp_path, trial)
    figures = json.loads(file.read_text())
    figures |= {"dense_digest": "0123", "machine": {"cpu": "A Processor"}}
    file.write_text(json.dumps(figures))
    outcome = grid.run_trial(trial.with_(variant="sp"), tmp_path, tmp_path, silent)
    assert "began with other weights (0123, on A Processor)" in outcome
    assert "use another folder here" in outcome
