import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as vision

from decayprune.app.run import data
from decayprune.app.run.batches import MemoryBatches


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def write_fashion(folder: Path, zipped: bool, train: int = 24, test: int = 6) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28))
    labels = np.arange(train + test) % 10
    parts = (images[:train], labels[:train], images[train:], labels[train:])
    for name, values in zip(data._IDX_FILES, parts, strict=True):
        content = idx(values)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return images


def test_digits_are_split_once_and_for_all_with_every_class_in_its_share() -> None:
    found, again = (data.load("digits", Path(), 32, seed) for seed in (0, 1))
    parts = (found.train, found.validation, found.test)
    sizes = [len(part.targets) for part in parts]  # type: ignore[union-attr]
    assert sizes == [1257, 180, 360]
    assert (found.in_channels, found.image_size, found.num_classes) == (1, 8, 10)
    assert isinstance(found.test, MemoryBatches)
    assert isinstance(again.test, MemoryBatches)
    assert torch.equal(found.test.images, again.test.images)
    assert found.test.targets.bincount().min() >= 34
    assert found.test.images.max() == 255


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["", "FashionMNIST/raw", "fashion-mnist"])
def test_fashion_mnist_is_found_where_people_put_it(
    tmp_path: Path, zipped: bool, place: str
) -> None:
    images = write_fashion(tmp_path / place, zipped)
    found = data.load("fashion-mnist", tmp_path, 4, 0)
    assert isinstance(found.train, MemoryBatches)
    assert isinstance(found.validation, MemoryBatches)
    assert isinstance(found.test, MemoryBatches)
    assert (len(found.train.targets), len(found.validation.targets)) == (22, 2)
    assert torch.equal(found.test.images[:, 0], torch.from_numpy(images[24:].astype(np.uint8)))
    both = torch.cat([found.train.images, found.validation.images]).flatten(1).sum(1)
    assert sorted(both.tolist()) == sorted(images[:24].reshape(24, -1).sum(1).tolist())


def test_fashion_mnist_falls_back_on_debians_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fashion(tmp_path / "debian", zipped=True)
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    found = data.load("fashion-mnist", tmp_path / "nothing", 4, 0)
    assert (found.in_channels, found.image_size, found.num_classes) == (1, 28, 10)


def test_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    write_fashion(tmp_path, zipped=False)
    train = data.load("fashion-mnist", tmp_path, 4, 0).train
    assert isinstance(train, MemoryBatches)
    pixels = train.images.double() / 255
    assert train.mean == pytest.approx([float(pixels.mean())])
    assert train.std == pytest.approx([float(pixels.std(correction=0))])


def test_missing_files_say_what_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setattr(vision, "FashionMNIST", offline)
    with pytest.raises(FileNotFoundError) as caught:
        data.load("fashion-mnist", tmp_path / "mine", 4, 0)
    message = str(caught.value)
    assert "train-images-idx3-ubyte" in message
    assert str(tmp_path / "mine") in message
    assert "no route to host" in message
    assert "--data-dir" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("short", idx(np.zeros((4, 4)))[:-1]),
        ("empty", b""),
        ("foreign", b"\x89PNG and more"),
        # No time in it: parallel workers have to collect the same names.
        ("lying.gz", gzip.compress(b"x" * 100, mtime=0)[:-9]),
        ("plain.gz", b"not gzip"),
    ],
)
def test_damaged_idx_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*Get the file again"):
        data.read_idx(tmp_path / name)


def test_images_without_as_many_labels_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path, zipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(5)))
    with pytest.raises(ValueError, match=r"found \(24, 28, 28\) and \(5,\)"):
        data.load("fashion-mnist", tmp_path, 4, 0)


def cifar_records(count: int, labels: int) -> np.ndarray:
    records = np.random.default_rng(1).integers(0, 256, (count, labels + 3072), dtype=np.uint8)
    records[:, 0] = 7  # CIFAR-100's coarse class, or overwritten below
    records[:, labels - 1] = np.arange(count) % 10
    return records


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_binary_cifar_files(tmp_path: Path, name: str) -> None:
    subfolder, train, test, labels = data._CIFAR_BINARY[name]
    (tmp_path / subfolder).mkdir()
    for file in train + test:
        (tmp_path / subfolder / file).write_bytes(cifar_records(10, labels).tobytes())
    found = data.load(name, tmp_path, 4, 0)
    assert isinstance(found.train, MemoryBatches)
    assert isinstance(found.test, MemoryBatches)
    total = 10 * len(train)
    assert len(found.train.targets) == total - total // 10
    expected = cifar_records(10, labels)[:, labels:].reshape(10, 3, 32, 32)
    assert torch.equal(found.test.images, torch.from_numpy(expected))
    assert found.test.targets.tolist() == list(range(10))


def test_pythons_cifar_files_are_read_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / vision.CIFAR10.base_folder
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    records = cifar_records(10, 1)
    for name in names:
        content = {"data": records[:, 1:], "labels": records[:, 0].tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # The real checksums are those of the real files.
    monkeypatch.setattr(vision.CIFAR10, "train_list", [[name, None] for name in names[:5]])
    monkeypatch.setattr(vision.CIFAR10, "test_list", [["test_batch", None]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(vision.CIFAR10, "meta", meta)
    monkeypatch.setattr(vision.CIFAR10, "download", lambda self: None)
    found = data.load("cifar10", tmp_path, 4, 0)
    assert isinstance(found.test, MemoryBatches)
    assert torch.equal(
        found.test.images, torch.from_numpy(records[:, 1:].reshape(10, 3, 32, 32).copy())
    )


def test_truncated_cifar_files_are_refused(tmp_path: Path) -> None:
    subfolder, train, test, _ = data._CIFAR_BINARY["cifar10"]
    (tmp_path / subfolder).mkdir()
    for file in train + test:
        (tmp_path / subfolder / file).write_bytes(b"x" * 3000)
    with pytest.raises(ValueError, match="records of 3073 bytes; found 3000"):
        data.load("cifar10", tmp_path, 4, 0)


def test_imagenet_is_read_from_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train/<class>/\*.JPEG"):
        data.load("imagenet", tmp_path, 2, 0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(2):
                picture = Image.new("RGB", (300, 260), (index * 100, 50, 200))
                picture.save(tmp_path / part / name / f"{index}.JPEG")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = data.load("imagenet", tmp_path, 2, 0)
    torch.set_num_threads(threads)
    images, targets = next(iter(found.train.epoch(0)))
    assert images.shape == (2, 3, 224, 224)
    assert found.num_classes == 2
    assert sorted(torch.cat([y for _, y in found.test.epoch(0)]).tolist()) == [0, 0, 1, 1]
    assert targets.dtype == torch.int64


def test_unknown_data_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one of digits, .*found 'mnist'.*or pkg.mod"):
        data.load("mnist", Path(), 4, 0)
