"""Refusals of values; those that test_settings.py does not list."""

from pathlib import Path

import pytest

from decayprune.app.run.checks import check_device
from decayprune.app.run.settings import Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "galaxy"}, "--scope expects one of width, local, .*; found 'galaxy'"),
        ({"floor": 1.0}, r"--floor is the share .* below 1; found 1\.0"),
        ({"round_to": "0"}, "--round-to expects a whole number from 1, auto or none; found 0"),
        ({"round_to": "eight"}, "auto or none; found eight"),
        (
            {"importance": "luck"},
            "--importance expects one of sensitivity, .*, or pkg.mod:function",
        ),
        ({"depth": 0.0}, r"--depth is the share that remains.*found 0\.0"),
        ({"depth": 0.5, "latency_budget": 0.5}, "--latency-budget .* cannot stand beside --depth"),
        ({"host": "hesso", "depth": 0.5}, "--depth has no effect with --host hesso"),
        ({"latency_budget": 2.0}, r"--latency-budget is the share that remains.*found 2\.0"),
        ({"weight_decay": -1.0}, "--weight-decay must be at least 0"),
        ({"optimizer": "rmsprop"}, "--optimizer expects sgd, adamw or .*found 'rmsprop'"),
        ({"optimizer": "torch.optim:SGD", "host": "hesso"}, "--host hesso is an optimizer itself"),
        ({"host": "dhspg", "latency_budget": 0.5}, "--latency-budget has no effect with --host d"),
        ({"host": "depgraph", "scope": "global"}, "--scope has no effect with --host depgraph"),
        ({"image_size": 64}, "--image-size is for --data FOLDER"),
        ({"data": "nowhere", "model": "a:b"}, "there is no folder nowhere"),
        ({"weights": "nowhere.pt"}, "--weights expects a file or a folder; there is no nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes).resolved()  # type: ignore[arg-type]


def test_a_folder_takes_a_batch_size_and_loaders_do_not(tmp_path: Path) -> None:
    folder = Settings(data=str(tmp_path), model="a:b", batch_size=8).resolved()
    assert (folder.folder, folder.batch_size) == (tmp_path, 8)
    with pytest.raises(ValueError, match="--batch-size has no effect on the loaders"):
        Settings(data="a:b", model="a:b", batch_size=8).resolved()


def test_devices() -> None:
    check_device("cpu")
    with pytest.raises(ValueError, match="--device expects cpu, cuda or cuda:1"):
        check_device("tpu")
