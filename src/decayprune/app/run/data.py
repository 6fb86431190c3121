"""The data sets the command knows: digits, Fashion-MNIST, CIFAR-10, CIFAR-100, ImageNet.

Each function finds the files, or says which files it wants and where, and returns :class:`Data`:
training, validation and test splits that are the same on every machine. The digits come with
scikit-learn and need no file. Reading pixels is all that happens here; batches.py makes batches.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decayprune.app.run.batches import Augmentation, Batches, MemoryBatches

DATASETS = ("digits", "fashion-mnist", "cifar10", "cifar100", "imagenet")
"""The names that ``decayprune prune --dataset`` understands."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split: uint8 ``(n, C, H, W)``, and their classes, int64 ``(n,)``."""

    images: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """What a run needs of a data set.

    Attributes:
        train: Shuffled and augmented batches.
        validation: Batches to tune on, or None where the set has no such split.
        test: Batches for the figures that are reported.
        in_channels: Channels of an image; 0 where the user's own loaders decide.
        image_size: Height and width of an image.
        num_classes: Number of classes.
        judged_on: What the figures were measured on, in words.
    """

    train: Batches
    validation: Batches | None
    test: Batches
    in_channels: int = 0
    image_size: int = 0
    num_classes: int = 0
    judged_on: str = "the test split"


def load(name: str, folder: Path, batch_size: int, seed: int) -> Data:
    """Read a data set by name.

    Args:
        name: One of :data:`DATASETS`.
        folder: Where files are looked for, and downloaded to.
        batch_size: Images per training batch.
        seed: Order and augmentation of the training batches.

    Raises:
        ValueError: There is no data set of that name, or a file is damaged.
        FileNotFoundError: Files are missing and could not be downloaded.
    """
    if name == "digits":
        return _digits(batch_size, seed)
    if name == "fashion-mnist":
        return _fashion_mnist(folder, batch_size, seed)
    if name in ("cifar10", "cifar100"):
        return _cifar(name, folder, batch_size, seed)
    if name == "imagenet":
        return _imagenet(folder, batch_size, seed)
    raise ValueError(
        f"--dataset expects one of {', '.join(DATASETS)}; found {name!r}. For your own data give "
        "--data, a folder of class folders or pkg.mod:loaders."
    )


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels scaled to 0..1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        # Counting the 256 values needs no float copy of the whole set.
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(max(float(share @ (values - mean[-1]) ** 2) ** 0.5, 1e-3))
    return tuple(mean), tuple(std)


def _in_memory(
    train: Split,
    validation: Split,
    test: Split,
    batch_size: int,
    seed: int,
    augment: Augmentation,
) -> Data:
    mean, std = _statistics(train.images)

    def batches(split: Split) -> MemoryBatches:
        return MemoryBatches(split.images, split.targets, mean, std, min(500, len(split.targets)))

    return Data(
        MemoryBatches(train.images, train.targets, mean, std, batch_size, True, seed, augment),
        batches(validation),
        batches(test),
        in_channels=train.images.shape[1],
        image_size=train.images.shape[2],
        num_classes=int(train.targets.max()) + 1,
    )


def _divide(split: Split, held_out: int) -> tuple[Split, Split]:
    """Hold out a fixed random part: the same one whatever the seed of the run."""
    order = torch.randperm(len(split.targets), generator=torch.Generator().manual_seed(0))
    kept, out = order[held_out:], order[:held_out]
    return (
        Split(split.images[kept], split.targets[kept]),
        Split(split.images[out], split.targets[out]),
    )


def _digits(batch_size: int, seed: int) -> Data:
    """Scikit-learn's 1,797 digits of 8x8 pixels: 1,257 / 180 / 360, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy((source.images * (255 / 16)).round().astype(np.uint8))[:, None]
    targets = torch.from_numpy(source.target.astype(np.int64))
    index = np.arange(len(targets))
    rest, test = train_test_split(index, test_size=360, stratify=targets, random_state=0)
    train, validation = train_test_split(
        rest, test_size=180, stratify=targets[rest], random_state=0
    )
    return _in_memory(
        Split(images[train], targets[train]),
        Split(images[validation], targets[validation]),
        Split(images[test], targets[test]),
        batch_size,
        seed,
        Augmentation(shift=1),
    )


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes (the format of MNIST), gzipped or not.

    Args:
        path: The file; gzipped if its name ends in ``.gz``.

    Returns:
        uint8, in the shape that the file states.

    Raises:
        ValueError: The file is truncated or is no IDX file of bytes.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}). Get the file again.") from error
    # Two zero bytes, the type (8 = unsigned byte), the number of dimensions, then the sizes.
    dims = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * dims], ">u4").tolist())
    start = 4 + 4 * dims
    if not dims or len(shape) != dims or len(content) - start != int(np.prod(shape)):
        raise ValueError(
            f"{path} should be an IDX file of bytes whose length fits its header; found "
            f"{len(content)} bytes beginning {content[:4].hex(' ') or '(nothing)'}. "
            "Get the file again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).reshape(shape)


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _find_idx(folders: list[Path]) -> list[Path] | None:
    """The four files in the first folder that holds all of them, plain or gzipped."""
    for folder in folders:
        found = [
            next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
            for name in _IDX_FILES
        ]
        paths = [path for path in found if path is not None]
        if len(paths) == len(_IDX_FILES):
            return paths
    return None


def _labelled(images: Path, labels: Path) -> Split:
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.dim() != 3 or classes.dim() != 1 or len(pixels) != len(classes):
        raise ValueError(
            f"{images} and {labels.name} should hold equally many images (n, H, W) and labels "
            f"(n,); found {tuple(pixels.shape)} and {tuple(classes.shape)}."
        )
    return Split(pixels[:, None], classes.long())


def _fashion_mnist(folder: Path, batch_size: int, seed: int) -> Data:
    """Fashion-MNIST: 55,000 / 5,000 / 10,000 images of 28x28."""
    downloaded = folder / "FashionMNIST" / "raw"
    places = [folder, downloaded, folder / "fashion-mnist", DEBIAN_FASHION_MNIST]
    paths = _find_idx(places)
    if paths is None:
        from torchvision.datasets import FashionMNIST

        wanted = "the four IDX files of Fashion-MNIST (train-images-idx3-ubyte[.gz], ...)"
        _download(lambda: FashionMNIST(str(folder), download=True), wanted, places)
        paths = _find_idx([downloaded])
    if paths is None:
        raise FileNotFoundError(f"The download left no complete Fashion-MNIST in {downloaded}.")
    full, test = _labelled(paths[0], paths[1]), _labelled(paths[2], paths[3])
    train, validation = _divide(full, len(full.targets) // 12)
    augment = Augmentation(flip=True, shift=2)
    return _in_memory(train, validation, test, batch_size, seed, augment)


def _download(get: Callable[[], object], wanted: str, places: list[Path]) -> None:
    looked = "\n".join(f"  {place}" for place in places)
    try:
        get()
    except Exception as error:  # torchvision lets through whatever the network raises
        raise FileNotFoundError(
            f"{wanted[0].upper()}{wanted[1:]} were not found in\n{looked}\nand could not be "
            f"downloaded ({type(error).__name__}: {error}).\nPut them into the first folder, or "
            "name theirs with --data-dir."
        ) from error


def _cifar_binary(folder: Path, files: tuple[str, ...], labels: int) -> Split:
    """Read CIFAR's binary files: per image its ``labels`` label bytes, then 3x32x32 pixels."""
    rows = []
    for name in files:
        content = np.frombuffer((folder / name).read_bytes(), np.uint8)
        size = labels + 3072
        if not len(content) or len(content) % size:
            raise ValueError(
                f"{folder / name} should hold records of {size} bytes; found {len(content)} "
                "bytes. Get the file again."
            )
        rows.append(content.reshape(-1, size))
    records = torch.from_numpy(np.concatenate(rows))
    # CIFAR-100 stores the coarse class first; the last label is the one everybody reports.
    return Split(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].long())


_CIFAR_BINARY = {
    "cifar10": (
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        1,
    ),
    "cifar100": ("cifar-100-binary", ("train.bin",), ("test.bin",), 2),
}


def _cifar(name: str, folder: Path, batch_size: int, seed: int) -> Data:
    """CIFAR-10 or CIFAR-100: 45,000 / 5,000 / 10,000 images of 32x32."""
    from torchvision import datasets

    subfolder, train_files, test_files, labels = _CIFAR_BINARY[name]
    binary = folder / subfolder
    if all((binary / file).is_file() for file in train_files + test_files):
        full = _cifar_binary(binary, train_files, labels)
        test = _cifar_binary(binary, test_files, labels)
    else:
        # torchvision compares checksums before it opens its (pickled) files.
        kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        places = [binary, folder / kind.base_folder]
        wanted = f"the files of {name} ({', '.join(train_files)}, ...)"
        _download(lambda: kind(str(folder), download=True), wanted, places)
        full, test = (
            Split(
                torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(part.targets),
            )
            for part in (kind(str(folder), train=True), kind(str(folder), train=False))
        )
    train, validation = _divide(full, len(full.targets) // 10)
    augment = Augmentation(flip=True, shift=4)
    return _in_memory(train, validation, test, batch_size, seed, augment)


def _imagenet(folder: Path, batch_size: int, seed: int) -> Data:
    """Folders ``train/<class>/*`` and ``val/<class>/*``, at 224x224; too large for memory."""
    from decayprune.app.run.images import load_folder

    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f"--dataset imagenet expects the folders train/<class>/*.JPEG and "
                f"val/<class>/*.JPEG under --data-dir; {folder / part} is no folder."
            )
    return load_folder(folder, batch_size, seed)
