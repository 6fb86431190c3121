import json
from pathlib import Path
from typing import Any

import pytest

from decayprune.app.run.surroundings import commit
from decayprune.app.study.job import Job, read_data, result_file
from decayprune.app.study.trial import Training, Trial

TRIAL = Trial(
    task="digits",
    model="resnet8",
    variant="alone",
    training=Training(epochs=2, lr=0.02),
    batch_size=16,
    budget=0.4,
    decay_steps=2,
    bf16=False,
    limit=80,
)


def run(trial: Trial, folder: Path, *, keep: bool = False) -> dict[str, Any]:
    found = Job(trial, folder, folder).run()
    if keep:
        file = result_file(folder, trial)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found))
    return found


def test_the_figures_say_what_was_run_and_what_came_of_it(tmp_path: Path) -> None:
    found = run(TRIAL, tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert Trial.from_dict(found["trial"]) == TRIAL
    assert (found["steps"], [point["step"] for point in found["curve"]]) == (10, [5, 10])
    assert found["validation_accuracy"] == found["curve"][-1]["validation_accuracy"]
    assert found["macs_after"] <= 0.4 * found["macs_before"]
    assert found["events"]["pruned"] == found["events"]["decayed"] > 0
    assert found["events"]["released"] == 0
    assert found["max_rel_error"] < 1e-4
    assert found["commit"] == commit()


def test_the_others_aim_at_what_the_host_alone_ended_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"It is compared with .*run that trial first"):
        run(TRIAL.with_(variant="sp"), tmp_path)
    alone = run(TRIAL, tmp_path, keep=True)
    small = run(TRIAL.with_(variant="small"), tmp_path)
    assert (small["kept"], small["macs_after"]) == (alone["kept"], alone["macs_after"])
    assert small["macs_before"] == alone["macs_before"]
    smooth = run(TRIAL.with_(variant="sp"), tmp_path)
    assert smooth["macs_after"] <= alone["macs_after"]


def test_trained_on_nothing_is_cut(tmp_path: Path) -> None:
    found = run(TRIAL.with_(variant="longer"), tmp_path)
    assert found["macs_after"] == found["macs_before"]
    assert found["events"] == {
        "decayed": 0, "released": 0, "pruned": 0, "released_by_layer": {},
    }  # fmt: skip


def test_a_limit_cuts_every_split_down(tmp_path: Path) -> None:
    data = read_data(TRIAL.with_(limit=8), tmp_path)
    assert (len(data.train), len(data.test)) == (1, 1)
    inputs, targets = next(iter(data.train.epoch(0)))
    assert len(inputs) == len(targets) == 8
    whole = read_data(TRIAL.with_(limit=None), tmp_path)
    assert len(whole.train) > len(read_data(TRIAL, tmp_path).train) == 5
