from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import decayprune as dp
from decayprune.app.pretrained.arms import (
    ARMS,
    EARLY,
    ArmRun,
    Start,
    averaged_taylor,
    by_variance,
)
from decayprune.app.pretrained.loop import train
from decayprune.app.pretrained.task import dense
from pretrained_toy import WIDTH, Net, Points, Toy

PRUNED = ("abrupt", "sp", "sp_sr", "variance_abrupt", "variance_sp_sr", "taylor_abrupt")
PRUNED += ("ridge_taylor_abrupt", "ridge_abrupt", "ridge_sp_sr", "random_selection")
PRUNED += ("random_release", "ridge_abrupt_distil", "ridge_sp_sr_distil")
PRUNED += ("sensitive_abrupt", "sensitive_sp_sr", "sensitive_early", "sensitive_within")


def start(folder: Path, arm: str, **changes: Any) -> Start:
    task = Toy(folder)
    values = {"seed": 0, "steps": 30, "budget": 0.5, "lr": 0.01, "dense_steps": 20, **changes}
    return Start(task, ArmRun(arm=arm, **values), task.data())


@pytest.mark.parametrize("arm", PRUNED)
def test_every_arm_that_prunes_meets_the_budget(tmp_path: Path, arm: str) -> None:
    begun = start(tmp_path, arm)
    subject = ARMS[arm](begun)
    assert (subject.teacher is not None) == arm.endswith("distil")
    trained = train(
        subject.model, begun.data["train"].forever(1), subject.steps, 0.01, title=arm,
        pruner_on=subject.pruner_on, teacher=subject.teacher,
    )  # fmt: skip
    assert trained["report"].macs_after <= 0.5 * trained["report"].macs_before
    assert begun.task.widths(subject.model) == {"hidden": [WIDTH // 2]}


def test_a_short_run_still_decays(tmp_path: Path) -> None:
    begun = start(tmp_path, "sp_sr", steps=5)
    subject = ARMS["sp_sr"](begun)
    train(
        subject.model, begun.data["train"].forever(1), 5, 0.01, title="short",
        pruner_on=subject.pruner_on,
    )  # fmt: skip
    assert begun.task.widths(subject.model) == {"hidden": [WIDTH // 2]}


def test_from_scratch_the_shape_is_the_pruned_one_and_the_weights_are_new(tmp_path: Path) -> None:
    extra = ARMS["scratch_extra"](start(tmp_path, "scratch_extra"))
    total = ARMS["scratch_total"](start(tmp_path, "scratch_total"))
    assert extra.model.up.weight.shape == (WIDTH // 2, 4)
    assert extra.pruner_on is None
    assert (extra.steps, total.steps) == (30, 30 + 20 * 2)  # dense steps at half of the price
    torch.manual_seed(0)
    rows = {tuple(row) for row in Net().up.weight.tolist()}
    assert {tuple(row) for row in extra.model.up.weight.tolist()} < rows


def test_pruned_early_the_small_network_gets_the_dense_steps_that_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decayprune.app.pretrained.arms.EARLY", 8)
    begun = start(tmp_path, "sensitive_early")
    subject = ARMS["sensitive_early"](begun)
    assert subject.steps == 30 + (20 - 8) * 2  # at half of the price
    fine_tuned, little = begun.dense.up.weight, subject.model.up.weight
    assert not torch.equal(little, fine_tuned)
    assert torch.equal(little, dense(begun.task, 0, begun.data, 8).up.weight)


def test_pruned_early_in_one_loop_it_takes_as_much_compute_and_begins_with_the_pretrained(
    tmp_path: Path,
) -> None:
    begun = start(tmp_path, "sensitive_within", dense_steps=120)
    subject = ARMS["sensitive_within"](begun)
    assert subject.steps == EARLY + 30 + (120 - EARLY) * 2
    torch.manual_seed(0)
    assert torch.equal(subject.model.up.weight, begun.task.pretrained().up.weight)
    assert subject.pruner_on is not None
    pruner = subject.pruner_on(torch.optim.SGD(subject.model.parameters(), lr=0.0))
    assert (pruner.schedule, pruner.finished) == (
        dp.Schedule(start=100, stop=100, decay_steps=1),
        False,
    )


def test_a_dense_fine_tuning_shorter_than_the_early_one_leaves_nothing_to_save(
    tmp_path: Path,
) -> None:
    assert ARMS["sensitive_early"](start(tmp_path, "sensitive_early")).steps == 30


def test_dense_on_goes_on_with_the_dense_network(tmp_path: Path) -> None:
    subject = ARMS["dense_on"](start(tmp_path, "dense_on"))
    assert (subject.steps, subject.pruner_on, subject.teacher) == (30, None, None)
    assert subject.model.up.out_features == WIDTH


def test_calibration_is_the_same_again_and_another_with_another_seed(tmp_path: Path) -> None:
    def first(seed: int) -> Tensor:
        return next(start(tmp_path, "abrupt", seed=seed).calibration())[0]["inputs"]

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_what_wraps_a_pruner_gets_it_and_what_was_read(tmp_path: Path) -> None:
    seen = []
    arm = by_variance(lambda pruner, read: seen.append((pruner, read)) or pruner, smooth=False)
    subject = arm(start(tmp_path, "wrapped"))
    assert subject.pruner_on is not None
    pruner = subject.pruner_on(torch.optim.SGD(subject.model.parameters(), lr=0.0))
    assert [found for found, _ in seen] == [pruner]
    assert [reader.name for reader in seen[0][1].readers] == ["down"]


def test_averaged_taylor_is_the_derivative_by_a_gate_on_each_unit() -> None:
    model = Net().double()
    example = torch.randn(2, 4, dtype=torch.float64)
    structures = dp.inspect(model, example).structures
    batches = [
        ({"inputs": inputs["inputs"].double()}, labels)
        for (inputs, labels), _ in zip(Points(0).forever(0), range(3), strict=False)
    ]
    found = averaged_taylor(model, structures, batches)(structures, {})
    expected = torch.zeros(WIDTH, dtype=torch.float64)
    for inputs, labels in batches:
        gate = torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)
        hidden = torch.relu(model.up(inputs["inputs"])) * gate
        (slope,) = torch.autograd.grad(F.cross_entropy(model.down(hidden), labels), gate)
        expected += slope.square()
    torch.testing.assert_close(found.double(), expected.sqrt(), rtol=1e-5, atol=1e-7)
