"""What adapters work out for their users."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import decayprune as dp
from decayprune.integrations.arguments import calibrating, fitting, moved, two_examples


def test_a_schedule_fits_the_training() -> None:
    assert fitting(None, 100) == dp.Schedule.for_run(100)
    own = dp.Schedule(stop=10, decay_steps=5)
    assert fitting(own, 15) is own
    with pytest.raises(ValueError, match=r"stops at 10 and decays last 5 steps, but .* has 14"):
        fitting(own, 14)
    assert fitting(own, 15, calibrated=True) is own
    assert fitting(None, 100, calibrated=True) == dp.Schedule.at_once()


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


def test_batches_of_the_training_data_calibrate() -> None:
    data = Drawn(torch.zeros(50, 3), torch.arange(50))
    loader, state = DataLoader(data, batch_size=4, shuffle=True), torch.get_rng_state()
    weight = torch.zeros(1, dtype=torch.bfloat16)
    found = calibrating({"calibrate": 3, "floor": 0.2}, loader, "Callback", weight)
    assert found["floor"] == 0.2
    assert [tuple(x.shape) for x, _ in found["calibrate"]] == [(4, 3)] * 3
    assert {x.dtype for x, _ in found["calibrate"]} == {torch.bfloat16}
    labels = torch.cat([y for _, y in found["calibrate"]]).tolist()
    assert len(set(labels)) == 12
    assert sorted(labels) != list(range(12))  # data often lies in the order of its classes
    assert torch.equal(torch.get_rng_state(), state)
    everything = calibrating({"calibrate": 99}, loader, "Callback", weight)["calibrate"]
    assert sum(len(x) for x, _ in everything) == 50


def test_batches_that_are_given_stay() -> None:
    batches = [torch.zeros(1)]
    found = calibrating({"calibrate": batches}, None, "Callback", batches[0])
    assert found["calibrate"] is batches
    assert calibrating({}, None, "Callback", batches[0]) == {}
    with pytest.raises(ValueError, match=r"such as 16; found 0"):
        calibrating({"calibrate": 0}, None, "Callback", batches[0])
    with pytest.raises(ValueError, match=r"pass Callback\(calibrate=\[\.\.\.\]\)"):
        calibrating({"calibrate": 4}, DataLoader(Stream()), "Callback", batches[0])


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
