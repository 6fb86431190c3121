"""What is read of a user's batches."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import decayprune as dp
from decayprune.compensation.batches import MOST_BATCHES, OF_A_LOADER, inputs_from, inputs_of

X, Y, Z = (torch.full((2, 3), float(value)) for value in range(3))


@pytest.mark.parametrize(
    ("batch", "example", "expected"),
    [
        (X, Y, X),
        ((X, Y), Z, (X,)),
        ([X, Y], Z, (X,)),
        ((X,), Z, (X,)),
        ((X, Y, Z), (Z, Z), (X, Y)),
        (((X, Y), Z), (Z, Z), (X, Y)),
        (([X, Y], Z), ([Z, Z],), ([X, Y],)),  # images of a list, and their boxes
        ({"x": X, "labels": Y}, {"x": Z}, {"x": X}),
        ({"x": X, "mask": Y}, {"x": Z}, {"x": X, "mask": Y}),
        ({"x": X, "labels": Y}, {"x": Z, "labels": Z}, {"x": X, "labels": Y}),
        (({"x": X, "labels": Y}, Z), {"x": Z}, {"x": X}),
        (UserDict(x=X, labels=Y), {"x": Z}, {"x": X}),
        ({"x": X, "label_ids": Y}, Z, {"x": X}),
    ],
)
def test_the_part_that_the_model_takes(batch: Any, example: Any, expected: Any) -> None:
    found = inputs_of(batch, example)
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("batch", "example", "words"),
    [
        ((X,), (X, Y), r"has 2 as arguments of the model, and .* is a tuple of 1"),
        ([], X, r"has 1 as arguments of the model, and .* is a list of 0"),
        ((X, Y), {"x": X}, r"has \['x'\] as arguments of the model"),
        ({"y": X}, {"x": X}, r"has 'x', and a batch of calibrate has only 'y'"),
    ],
)
def test_a_batch_of_another_form_is_named(batch: Any, example: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inputs_of(batch, example)


def test_a_dataset_is_not_a_loader() -> None:
    with pytest.raises(TypeError, match=r"a TensorDataset, whose items are single examples. Pass"):
        inputs_from(TensorDataset(X), X)


@pytest.mark.parametrize("given", [X, {"x": X}, "images", 1.5, True])
def test_what_is_no_list_of_batches(given: Any) -> None:
    with pytest.raises(TypeError, match=f"found {type(given).__name__}. Pass your loader"):
        inputs_from(given, X)


def test_no_more_is_read_than_it_takes() -> None:
    read = 0

    def forever() -> Iterator[Tensor]:
        nonlocal read
        while True:
            read += 1
            yield X

    assert len(inputs_from(forever(), X)) == read == MOST_BATCHES
    loader: Any = DataLoader(TensorDataset(torch.zeros(100, 3), torch.zeros(100)), batch_size=2)
    assert len(inputs_from(loader, X)) == OF_A_LOADER


def test_a_loader_begins_the_training_as_without() -> None:
    loader: Any = DataLoader(TensorDataset(torch.arange(64.0)[:, None]), 4, shuffle=True)
    torch.manual_seed(0)
    expected = next(iter(loader))
    torch.manual_seed(0)
    inputs_from(loader, X)
    torch.testing.assert_close(next(iter(loader)), expected, rtol=0, atol=0)


def test_a_loader_with_labels_is_what_its_inputs_are() -> None:
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    loader: Any = DataLoader(TensorDataset(data, torch.zeros(40)), batch_size=8)

    def pruned(calibrate: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pruner = dp.DecayPruner(
            net,
            optimizer,
            data[:2],
            budget=dp.Budget(macs=0.5),
            schedule=dp.Schedule.at_once(),
            calibrate=calibrate,
        )
        net(data).square().mean().backward()
        optimizer.step()
        pruner.step()
        pruner.compact()
        return dict(net.state_dict())

    torch.testing.assert_close(pruned(loader), pruned([x for x, _ in loader]), rtol=0, atol=0)
