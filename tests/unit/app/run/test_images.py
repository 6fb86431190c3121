from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decayprune.app.run.images import load_folder


def write(folder: Path, count: int, *, grey: bool = False) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0)
    for i in range(count):
        shape = (12, 10) if grey else (12, 10, 3)
        Image.fromarray(pixels.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")


def test_a_fifth_of_each_class_is_held_out_always_the_same(tmp_path: Path) -> None:
    write(tmp_path / "cat", 10)
    write(tmp_path / "dog", 15, grey=True)
    data, again = (load_folder(tmp_path, 4, seed, 8) for seed in (0, 1))
    assert (data.in_channels, data.image_size, data.num_classes) == (3, 8, 2)
    assert data.judged_on == "a held-out fifth"
    assert (len(data.train), len(data.test)) == (5, 2)
    targets = [int(t) for _, batch in data.test.epoch(0) for t in batch]
    assert sorted(targets) == [0, 0, 1, 1, 1]
    images = next(iter(data.test.epoch(0)))[0]
    assert images.shape == (4, 3, 8, 8)
    assert images.equal(next(iter(again.test.epoch(0)))[0])
    orders = [[b[1].tolist() for b in one.train.epoch(0)] for one in (data, data, again)]
    assert orders[0] == orders[1] != orders[2]


def test_folders_say_which_images_are_judged_on(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("valid", 3)):
        for name in ("cat", "dog"):
            write(tmp_path / part / name, count)
    data = load_folder(tmp_path, 4, 0, 8)
    assert (len(data.train), len(data.test), data.judged_on) == (3, 2, "the images in valid/")
    write(tmp_path / "train" / "cow", 6)
    with pytest.raises(ValueError, match=r"train/ and valid/ .* same classes; only one .* cow"):
        load_folder(tmp_path, 4, 0, 8)


def test_folders_without_images_in_classes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"one folder per class, such as .*find any class"):
        load_folder(tmp_path, 4, 0)
    (tmp_path / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match=r"one folder per class, such as .*no valid file"):
        load_folder(tmp_path, 4, 0)
    write(tmp_path / "dog", 3)
    (tmp_path / "cat").rmdir()
    with pytest.raises(ValueError, match=r"at least 5 images of a class.*found 3 at most"):
        load_folder(tmp_path, 4, 0)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write(tmp_path / "cat", 5)
    for path in (tmp_path / "cat").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"\.png cannot be read as an image\. Mend or remove"):
        next(iter(load_folder(tmp_path, 4, 0, 8).train.epoch(0)))
