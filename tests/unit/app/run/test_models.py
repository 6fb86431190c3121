import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.app.run.models import MODELS, BasicBlock, build


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [8, 28])
def test_every_model_takes_small_images(name: str, size: int) -> None:
    model = build(name, in_channels=1, num_classes=7, image_size=size).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "params"),
    [("resnet20", 0.27e6), ("resnet56", 0.85e6), ("resnet50", 23.5e6), ("vgg16", 14.7e6)],
)
def test_sizes_are_those_of_the_literature(name: str, params: float) -> None:
    found = sum(p.numel() for p in build(name, 3, 10, 32).parameters())
    assert found == pytest.approx(params, rel=0.02)


@pytest.mark.parametrize("name", ["resnet8", "vgg16_slim", "vit_tiny", "vit_slim"])
def test_models_can_be_pruned(name: str) -> None:
    found = dp.inspect(build(name, 1, 10, 8), torch.zeros(1, 1, 8, 8))
    assert found.least_macs < 0.5


def test_whole_heads_of_the_vit_can_leave() -> None:
    found = dp.inspect(build("vit_tiny", 1, 10, 8), torch.zeros(1, 1, 8, 8))
    heads = [group for group in found.groups if group.structures == 6]
    assert len(heads) == 6


def test_stages_are_not_tied_together() -> None:
    found = dp.inspect(build("resnet20", 1, 10, 8), torch.zeros(1, 1, 8, 8))
    # Nine blocks with a width of their own inside, and one shared width per stage.
    assert len(found.groups) == 9 + 3


def test_shortcuts_only_where_the_shape_changes() -> None:
    assert isinstance(BasicBlock(16, 16, 1).shortcut, nn.Identity)
    assert isinstance(BasicBlock(16, 32, 2).shortcut, nn.Sequential)


def test_names_are_forgiving_and_unknown_ones_refused() -> None:
    assert type(build("ResNet8", 1, 10, 8)) is type(build("resnet8", 1, 10, 8))
    assert build("vgg16-slim", 1, 10, 8) is not None
    with pytest.raises(ValueError, match=r"one of resnet8, .*found 'alexnet'"):
        build("alexnet", 3, 10, 32)


def test_vit_refuses_images_that_are_no_whole_number_of_patches() -> None:
    with pytest.raises(ValueError, match="found 30x30"):
        build("vit_tiny", 3, 10, 30)
