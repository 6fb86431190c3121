"""What adapters work out for their users."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import decayprune as dp
from decayprune.integrations.arguments import fitting, moved, two_examples


def test_a_schedule_fits_the_training() -> None:
    assert fitting(None, 100) == dp.Schedule.for_run(100)
    own = dp.Schedule(stop=10, decay_steps=5)
    assert fitting(own, 15) is own
    with pytest.raises(ValueError, match=r"stops at 10 and decays last 5 steps, but .* has 14"):
        fitting(own, 14)


class Drawn(TensorDataset):
    """Augments its examples at random."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + torch.rand(()), y


def test_two_examples_draw_nothing_from_the_training() -> None:
    data = Drawn(torch.zeros(5, 3), torch.arange(5))
    loader, state = DataLoader(data, batch_size=4, shuffle=True), torch.get_rng_state()
    x, y = two_examples(loader, "Callback")
    assert x.shape == (2, 3)
    assert y.tolist() == [0, 1]
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        len(two_examples(DataLoader(Drawn(torch.zeros(1, 3), torch.zeros(1))), "Callback")[0]) == 1
    )


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter([torch.zeros(3)])


@pytest.mark.parametrize("loader", [None, [], DataLoader(Stream())])
def test_what_cannot_be_looked_at(loader: Any) -> None:
    with pytest.raises(ValueError, match=r"pass Callback\(example_inputs=\.\.\.\)"):
        two_examples(loader, "Callback")


def test_numbers_follow_the_model_and_indices_stay_indices() -> None:
    found = moved(
        {"x": torch.zeros(2), "ids": torch.zeros(2, dtype=torch.int64), "n": 3},
        torch.device("cpu"),
        torch.bfloat16,
    )
    assert found["x"].dtype == torch.bfloat16
    assert found["ids"].dtype == torch.int64
    assert found["n"] == 3
