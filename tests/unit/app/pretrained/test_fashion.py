import itertools
from types import SimpleNamespace

import pytest
import torch

from decayprune.app.pretrained import fashion
from decayprune.app.pretrained.fashion import SIZE, Images
from decayprune.app.run.batches import MemoryBatches


def images(number: int = 30) -> Images:
    grey = torch.arange(number, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
    return Images(grey, torch.arange(number))


def test_an_image_is_enlarged_on_three_channels() -> None:
    inputs, labels = images().batch(torch.tensor([0, 25]))
    assert inputs["inputs"].shape == (2, 3, SIZE, SIZE)
    assert inputs["inputs"].is_contiguous(memory_format=torch.channels_last)
    assert inputs["inputs"][1].unique().tolist() == [(25 - 127) / 128]
    assert labels.tolist() == [0, 25]


def test_an_epoch_has_every_image_once_and_the_seed_decides_the_order() -> None:
    def labels(seed: int) -> list[int]:
        batches = itertools.islice(images().forever(seed, size=5), 6)
        return torch.cat([labels for _, labels in batches]).tolist()

    assert sorted(labels(0)) == list(range(30))
    assert labels(0) == labels(0) != labels(1)


def test_the_same_few_are_judged_always() -> None:
    few = [torch.cat([labels for _, labels in images().once(10)]) for _ in range(2)]
    assert torch.equal(*few)
    assert len(set(few[0].tolist())) == 10


def test_the_parts_are_those_of_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(number: int) -> MemoryBatches:
        found = images(number)
        labels = found.labels.int()
        return MemoryBatches(found.images, labels, (0.0,), (1.0,), batch_size=2)

    parts = SimpleNamespace(train=batches(9), validation=batches(5), test=batches(3))
    monkeypatch.setattr(fashion.data, "load", lambda *arguments: parts)
    found = fashion.load()
    assert {name: len(part.labels) for name, part in found.items()} == {
        "train": 9, "held_out": 5, "test": 3,
    }  # fmt: skip
    assert found["test"].labels.dtype == torch.int64
