from pathlib import Path

import pytest

from decayprune.app.pretrained.arms import ARMS, ArmRun
from decayprune.app.pretrained.execute import execute, size
from pretrained_toy import Toy

RUN = ArmRun(arm="ridge_abrupt", seed=1, steps=40, budget=0.5, lr=0.01, dense_steps=30)


def test_a_run_says_what_it_ended_with(tmp_path: Path) -> None:
    task = Toy(tmp_path)
    found = execute(task, RUN, ARMS, task.data(), judged_on="test")
    assert (found["macs"], found["hidden"], found["released"]) == (0.5, [4], 0)
    assert found["params"] == pytest.approx((4 * 4 + 4 + 2 * 4 + 2) / (8 * 4 + 8 + 2 * 8 + 2))
    assert [step for step, _ in found["curve"]] == [1, 4, 10, 20]
    assert 0.5 < found["accuracy"] <= 1
    again = execute(task, RUN, ARMS, task.data(), judged_on="test")
    same = ("accuracy", "dense_accuracy", "curve", "macs")
    assert [again[name] for name in same] == [found[name] for name in same]


def test_what_is_chosen_by_is_not_what_is_judged_on(tmp_path: Path) -> None:
    task, data = Toy(tmp_path), Toy(tmp_path).data()
    del data["test"]  # type: ignore[attr-defined]
    found = execute(task, RUN, ARMS, data, judged_on="held_out")
    assert found["judged_on"] == "held_out"


def test_the_same_network_has_all_of_its_size(tmp_path: Path) -> None:
    task = Toy(tmp_path)
    found = size(task, task.fresh(), task.fresh())
    assert (found["macs"], found["params"]) == (1.0, 1.0)
