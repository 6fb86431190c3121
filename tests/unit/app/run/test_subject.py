import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decayprune.app.run import subject
from decayprune.app.run.data import Data
from decayprune.app.run.settings import Settings


class Served:
    """A split of one batch."""

    def __init__(self, inputs: Any) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int, first: int = 0) -> Any:
        yield self._inputs, torch.zeros(8)


def test_a_named_model_fits_the_data_and_is_the_same_at_every_call() -> None:
    settings = Settings(device="cpu").resolved()
    data = subject.read_data(settings)
    one, other = (subject.fresh_model(settings, data) for _ in range(2))
    torch.randn(3)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert one(subject.example(settings, data, 5)).shape == (5, 10)
    third = subject.fresh_model(replace(settings, seed=1), data)
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_a_name_of_ours_beside_loaders_of_the_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = Settings(data="mine:loaders", model="resnet8", device="cpu").resolved()
    with pytest.raises(ValueError, match=r"--model pkg\.mod:factory; found 'resnet8'"):
        subject.fresh_model(settings, Data(Served(None), None, Served(None)))


def test_examples_are_cut_as_the_model_takes_them() -> None:
    rows = torch.arange(8)

    def example(inputs: Any) -> Any:
        split = Served(inputs)
        return subject.example(Settings(device="cpu"), Data(split, None, split), 2)

    assert example(rows).tolist() == [0, 1]
    assert [part.tolist() for part in example([rows, rows + 8])] == [[0, 1], [8, 9]]
    assert isinstance(example((rows, rows)), tuple)
    assert example({"ids": rows})["ids"].tolist() == [0, 1]
