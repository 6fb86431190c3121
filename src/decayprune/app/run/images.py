"""Folders of images: one folder per class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from decayprune.app.run.batches import LoaderBatches
from decayprune.app.run.data import Data

_TESTS = ("val", "valid", "validation", "test")
_HELD_OUT = 5  # every fifth image of a class, where no folder says which
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_folder(folder: Path, batch_size: int, seed: int, image_size: int = 224) -> Data:
    """Images in ``folder/train/<class>`` and ``folder/val/<class>``, or in ``folder/<class>``.

    Without ``train`` a fifth of each class is held out, always the same. Training crops and
    mirrors at random; the other images are resized and cropped in the middle; all are normalised
    as is usual for ImageNet.

    Args:
        folder: What ``--data`` names.
        batch_size: Images per batch.
        seed: Order and augmentation of the training batches.
        image_size: Height and width.

    Raises:
        FileNotFoundError: There are no images in class folders.
        ValueError: The two parts hold different classes.
    """
    tests = [name for name in _TESTS if (folder / name).is_dir()]
    if (folder / "train").is_dir() and tests:
        train, test = (
            _read(folder / part, _transform(image_size, training=part == "train"))
            for part in ("train", tests[0])
        )
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes))
            raise ValueError(
                f"train/ and {tests[0]}/ under {folder} should hold the same classes; only one of "
                f"them has {', '.join(odd[:5])}."
            )
        parts: tuple[Dataset[Any], Dataset[Any]] = (train, test)
        judged_on = f"the images in {tests[0]}/"
    else:
        train, test = (_read(folder, _transform(image_size, training=t)) for t in (True, False))
        kept, out = _divide(train.targets)
        parts, judged_on = (Subset(train, kept), Subset(test, out)), "a held-out fifth"
    return _data(parts, batch_size, seed, image_size, len(train.classes), judged_on, str(folder))


def _data(
    parts: tuple[Any, Any],
    batch_size: int,
    seed: int,
    image_size: int,
    classes: int,
    judged_on: str,
    given: str,
) -> Data:
    workers = 0 if len(parts[0]) < 1000 else min(8, torch.get_num_threads())
    train = DataLoader(
        parts[0],
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=len(parts[0]) >= batch_size,  # BatchNorm needs batches of one size
    )
    test = DataLoader(parts[1], batch_size, num_workers=workers)
    return Data(
        LoaderBatches(train, seed, given),
        None,
        LoaderBatches(test, seed, given),
        in_channels=3,
        image_size=image_size,
        num_classes=classes,
        judged_on=judged_on,
    )


def _transform(size: int, *, training: bool) -> Any:
    from torchvision import transforms as T

    crops = [T.Resize(round(size / 0.875)), T.CenterCrop(size)]
    if training:
        crops = [T.RandomResizedCrop(size), T.RandomHorizontalFlip()]
    return T.Compose([*crops, T.ToTensor(), T.Normalize(_MEAN, _STD)])


def _read(folder: Path, transform: Any) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder), transform, loader=_open)
    except FileNotFoundError as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"A folder of images expects one folder per class, such as {folder}/cat/1.jpg, or "
            f"train/<class> and val/<class> in it; {said}."
        ) from error


def _open(path: str) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image. Mend or remove the file") from error


def _divide(targets: Sequence[int]) -> tuple[list[int], list[int]]:
    """Indices to train on and to judge on: of each class one in five, by a fixed order."""
    kept: list[int] = []
    out: list[int] = []
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0)).tolist()
    seen: dict[int, int] = {}
    for index in order:
        seen[targets[index]] = seen.get(targets[index], -1) + 1
        (out if seen[targets[index]] % _HELD_OUT == _HELD_OUT - 1 else kept).append(index)
    if not out:
        raise ValueError(
            f"Expected at least {_HELD_OUT} images of a class, to hold a fifth out; found "
            f"{max(seen.values(), default=-1) + 1} at most. Add images, or sort them into train/ "
            "and val/ yourself."
        )
    return sorted(kept), sorted(out)
