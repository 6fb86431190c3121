import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from decayprune.app.run.batches import Augmentation, LoaderBatches, MemoryBatches, to_device


def memory(**changes: object) -> MemoryBatches:
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    arguments: dict[str, object] = {
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "batch_size": 8,
        "shuffle": True,
        "seed": 3,
        "augment": Augmentation(flip=True, shift=2),
    }
    return MemoryBatches(images, torch.arange(50), **(arguments | changes))  # type: ignore[arg-type]


def test_an_epoch_entered_in_the_middle_goes_on_as_if_from_the_start() -> None:
    batches = memory()
    whole = list(batches.epoch(2))
    rest = list(batches.epoch(2, first=4))
    assert len(whole) == len(batches) == 6
    assert len(rest) == 2
    for (x, y), (other_x, other_y) in zip(whole[4:], rest, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_order_depends_on_epoch_and_seed_and_not_on_the_global_generator() -> None:
    batches = memory()
    first = [y for _, y in batches.epoch(0)]
    torch.manual_seed(99)
    assert torch.equal(torch.cat(first), torch.cat([y for _, y in batches.epoch(0)]))
    for other in (batches.epoch(1), MemoryBatches(**(vars(batches) | {"seed": 4})).epoch(0)):
        assert not torch.equal(torch.cat(first), torch.cat([y for _, y in other]))
    assert torch.cat(first).unique().numel() == 48  # nobody twice


def test_unshuffled_batches_keep_the_order_and_the_last_incomplete_one() -> None:
    batches = memory(shuffle=False, augment=None)
    found = list(batches.epoch(0))
    assert torch.equal(torch.cat([y for _, y in found]), torch.arange(50))
    assert len(found) == len(batches) == 7


def test_normalisation_equals_the_formula() -> None:
    batches = memory(shuffle=False, augment=None)
    images, _ = next(batches.epoch(0))
    plain = batches.images[:8].double() / 255
    mean = torch.tensor(batches.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(batches.std, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(images.double(), (plain - mean) / std, rtol=1e-5, atol=1e-5)


def test_augmented_images_are_flips_and_crops_of_their_own_image() -> None:
    images = torch.randint(1, 256, (20, 2, 6, 5), dtype=torch.uint8)
    augment = Augmentation(flip=True, shift=2)
    found = augment(images, torch.Generator().manual_seed(0))
    seen = set()
    for image, result in zip(images, found, strict=True):
        moves = []
        for flip in (False, True):
            padded = F.pad(image.flip(2) if flip else image, (2, 2, 2, 2))
            for down in range(5):
                for right in range(5):
                    crop = padded[:, down : down + 6, right : right + 5]
                    if torch.equal(crop, result):
                        moves.append((flip, down, right))
        assert len(moves) == 1
        seen.update(moves)
    assert {flip for flip, _, _ in seen} == {False, True}
    assert len(seen) > 10


@pytest.mark.parametrize("size", [0, 51])
def test_impossible_batch_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and the 50 images there are; found {size}"):
        memory(batch_size=size)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Augments with all three generators a user may draw from."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(1) + random.random() + float(np.random.rand())
        return drawn, torch.tensor(index)


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_users_loader_repeats_itself(generator: torch.Generator | None) -> None:
    loader = DataLoader(Noisy(), batch_size=3, shuffle=True, generator=generator)
    batches = LoaderBatches(loader, seed=1)
    whole = list(batches.epoch(1))
    torch.rand(7)  # what a model draws in between
    rest = list(batches.epoch(1, first=3))
    assert len(whole) == 7
    for (x, y), (other_x, other_y) in zip(whole[3:], rest, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    order = torch.cat([y for _, y in whole])
    assert not torch.equal(order, torch.cat([y for _, y in batches.epoch(2)]))


def test_what_is_no_loader_is_refused() -> None:
    def endless() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="found generator without __len__"):
        len(LoaderBatches(endless()))  # type: ignore[arg-type]
    triples = DataLoader(TensorDataset(*(torch.zeros(4, 1) for _ in range(3))))
    with pytest.raises(TypeError, match=r"pairs \(inputs, targets\); found list of 3"):
        next(LoaderBatches(triples).epoch(0))


def test_a_loader_that_runs_dry_is_named() -> None:
    class Once:
        def __init__(self) -> None:
            self.items = iter([(torch.zeros(1), torch.zeros(1))])

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return self.items

    with pytest.raises(ValueError, match="holds 2 batches and gave 1"):
        list(LoaderBatches(Once()).epoch(0))


def test_to_device_keeps_the_shape_of_a_nest() -> None:
    nest = {"a": torch.zeros(1), "b": [torch.zeros(2), "text"], "c": (torch.zeros(3),)}
    moved = to_device(nest, torch.device("meta"))
    assert moved["a"].is_meta
    assert moved["b"][0].is_meta
    assert moved["b"][1] == "text"
    assert moved["c"][0].is_meta
