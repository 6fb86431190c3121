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


def test_models_of_torchvision_have_as_many_outputs_as_the_data_has_classes() -> None:
    assert subject.named("torchvision:squeezenet1_1", 7).classifier[1].out_channels == 7
    model = subject.named("torchvision:squeezenet1_1?num_classes=4", 7)
    assert model.classifier[1].out_channels == 4
    with pytest.raises(ValueError, match=r"no model 'resnt18'. Did you mean resnet18"):
        subject.named("torchvision:resnt18")
    with pytest.raises(ValueError, match=r"--model torchvision:resnet18\?odd=1 raised"):
        subject.named("torchvision:resnet18?odd=1")


def test_models_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    assert subject.named("timm:resnet10t", 7).get_classifier().out_features == 7
    words = "img_size=32&depth=1&embed_dim=24&num_heads=2&num_classes=4"
    model = subject.named(f"timm:vit_tiny_patch16_224?{words}", 7)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(ValueError, match=r"--model timm:resnet10t\?odd=1 raised TypeError"):
        subject.named("timm:resnet10t?odd=1")
    with pytest.raises(ValueError, match=r"no model 'resnet10q'. Did you mean .*resnet10t"):
        subject.named("timm:resnet10q")


def test_optimizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    (tmp_path / "odd_optimizers.py").write_text("def made(parameters, lr): return [lr]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def made(name: str) -> torch.optim.Optimizer:
        return subject.optimizer(Settings(optimizer=name, lr=0.3), model)

    assert made("sgd").defaults["momentum"] == 0.9
    assert isinstance(made("adamw"), torch.optim.AdamW)
    own = made("torch.optim:RMSprop?momentum=0.5")
    assert isinstance(own, torch.optim.RMSprop)
    assert (own.defaults["lr"], own.defaults["momentum"]) == (0.3, 0.5)
    with pytest.raises(ValueError, match=r"--optimizer torch.optim:Adam\?x=1 raised TypeError"):
        made("torch.optim:Adam?x=1")
    with pytest.raises(TypeError, match=r"a torch.optim.Optimizer; it returned list"):
        made("odd_optimizers:made")


def test_teachers() -> None:
    data = Data(Served(None), None, Served(None))
    dense = torch.nn.Linear(2, 2)
    assert subject.teacher(Settings(), data, dense) is None
    assert Settings(teacher="self") == Settings(teacher="dense")
    found = subject.teacher(Settings(teacher="dense", device="cpu"), data, dense)
    assert found is dense
    with pytest.raises(ValueError, match=r"--teacher expects dense, .*found 'professor'"):
        subject.teacher(Settings(teacher="professor"), data, dense)
