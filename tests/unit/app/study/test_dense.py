from pathlib import Path

import pytest
import torch

from decayprune.app.study.dense import dense, digest_of, fresh, optimizer_of, rate, steps_of
from decayprune.app.study.job import read_data
from decayprune.app.study.trial import Training, Trial

TRIAL = Trial(
    task="digits",
    model="resnet8",
    dense=Training(epochs=1, lr=0.1),
    training=Training(epochs=2, lr=0.02),
    batch_size=16,
    bf16=False,
    limit=80,
)


def silent(line: str) -> None:
    pass


def test_the_first_trial_of_a_seed_trains_for_all_of_them(tmp_path: Path) -> None:
    data, told = read_data(TRIAL, tmp_path), list[str]()
    model, digest = dense(TRIAL, data, tmp_path, tmp_path, told.append)
    assert told == ["dense network of seed 0: 5 steps"]
    assert digest == digest_of(model) != digest_of(fresh(TRIAL, data))
    other, again = dense(TRIAL.with_(host="hesso"), data, tmp_path, tmp_path, told.append)
    assert (again, len(told)) == (digest, 1)
    assert other is not model
    assert dense(TRIAL.with_(seed=1), data, tmp_path, tmp_path, told.append)[1] != digest
    assert len(list((tmp_path / "dense").iterdir())) == 2


def test_without_dense_training_pruning_starts_from_scratch(tmp_path: Path) -> None:
    trial = TRIAL.with_(dense=None)
    data = read_data(trial, tmp_path)
    assert dense(trial, data, tmp_path, tmp_path, silent)[1] == digest_of(fresh(trial, data))


def test_pretrained_weights_are_read_from_the_data_folder(tmp_path: Path) -> None:
    trial = TRIAL.with_(dense=None, pretrained="net.pth")
    data = read_data(trial, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"state dict saved with torch\.save in .*net\.pth"):
        dense(trial, data, tmp_path, tmp_path, silent)
    theirs = fresh(trial.with_(seed=7), data)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    assert dense(trial, data, tmp_path, tmp_path, silent)[1] == digest_of(theirs)


def test_the_digest_sees_every_weight_and_buffer(tmp_path: Path) -> None:
    model = fresh(TRIAL, read_data(TRIAL, tmp_path))
    before = digest_of(model)
    for tensor in (list(model.parameters())[-1], next(iter(model.buffers()))):
        with torch.no_grad():
            tensor.view(-1)[0] += 1e-3
        assert digest_of(model) != before
        before = digest_of(model)


def test_rates_fall_to_a_tenth_at_milestones_or_along_half_a_cosine() -> None:
    falls = rate(Training(epochs=1, lr=1.0, milestones=(0.5, 0.75)), 100)
    assert [falls(step) for step in (0, 49, 50, 74)] == [1.0, 1.0, 0.1, 0.1]
    assert falls(75) == pytest.approx(0.01)
    cosine = rate(Training(epochs=1, lr=1.0), 100)
    assert [cosine(0), cosine(100)] == pytest.approx([1.0, 0.0])
    assert cosine(50) == pytest.approx(0.5)
    warm = rate(Training(epochs=1, lr=1.0, warm=10), 100)
    assert [warm(step) / cosine(step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 1])


def test_steps_are_whole_epochs_up_to_the_most(tmp_path: Path) -> None:
    data = read_data(TRIAL, tmp_path)
    assert steps_of(TRIAL, TRIAL.training, data) == 2 * len(data.train) == 10
    assert steps_of(TRIAL.with_(steps=3), TRIAL.training, data) == 3


def test_the_optimizer_is_the_one_of_the_phase() -> None:
    model = torch.nn.Linear(2, 2)
    sgd = optimizer_of(Training(epochs=1, lr=0.1, momentum=0.5), model)
    assert (type(sgd), sgd.defaults["momentum"]) == (torch.optim.SGD, 0.5)
    adam = optimizer_of(Training(epochs=1, lr=0.1, optimizer="adamw", weight_decay=0.05), model)
    assert (type(adam), adam.defaults["weight_decay"]) == (torch.optim.AdamW, 0.05)
