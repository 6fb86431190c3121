import json
from pathlib import Path

import torch

from decayprune.app.pretrained.task import dense, dense_accuracy, dense_file
from pretrained_toy import Points, Toy


def test_a_dense_network_is_trained_once(tmp_path: Path) -> None:
    task = Toy(tmp_path / "not there yet")
    train = Points(0)
    first = dense(task, 3, {"train": train}, steps=5)
    again = dense(task, 3, {"train": train}, steps=5)
    assert train.drawn == [10_003]
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    other = dense(task, 4, {"train": train}, steps=5)
    assert not torch.equal(first.up.weight, other.up.weight)


def test_another_length_is_another_network(tmp_path: Path) -> None:
    task = Toy(tmp_path)
    assert dense_file(task, 0, 5).name == "dense-32x5-0.01-s0.safetensors"
    assert dense_file(task, 0).name == "dense-32x800-0.01-s0.safetensors"


def test_its_accuracy_is_judged_once(tmp_path: Path) -> None:
    task, data = Toy(tmp_path), {"test": Points(2)}
    model = dense(task, 0, {"train": Points(0)}, steps=5)
    found = dense_accuracy(task, 0, model, data, "test", 5)
    file = dense_file(task, 0, 5).with_suffix(".test.json")
    assert json.loads(file.read_text()) == found
    file.write_text("0.125")
    assert dense_accuracy(task, 0, model, data, "test", 5) == 0.125
