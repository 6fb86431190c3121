"""What people do with a model of timm after a cut, against the real library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp

timm = pytest.importorskip("timm", reason="timm is not installed")

CLASSES = 3
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (12, 12, 16, 16)},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2},
    "mobilenetv3_small_050": {},  # a layer stands between its features and its classifier
}


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pruned(model: nn.Module, average: Any = None) -> nn.Module:
    """Some channels of every kind leave, and so they do from a moving average."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        IMAGES,
        budget=dp.Budget(structures=0.5),
        schedule=dp.Schedule(stop=2, decay_steps=1),
        rectify=None,
        importance="random",
        residual_width=True,
        round_to=None,
    )
    while not pruner.finished:
        model(IMAGES).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model)
    copies = [] if average is None else [average.module]
    assert pruner.compact(copies=copies).removed
    return model.eval()


def create(name: str) -> Any:
    return timm.create_model(name, num_classes=CLASSES, **SMALL[name])


@torch.no_grad()
def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-5 * other.abs().max())


@pytest.mark.parametrize("name", SMALL)
def test_a_new_classifier_fits_what_is_left(name: str) -> None:
    dense = create(name)
    model: Any = pruned(create(name))
    assert model.num_features < dense.num_features
    assert model.num_features == model.forward_features(IMAGES).shape[1 if "vit" not in name else 2]
    model.reset_classifier(7)
    assert model.get_classifier().in_features == model.head_hidden_size < dense.head_hidden_size
    assert model(IMAGES).shape == (4, 7)
    model.reset_classifier(0)  # a backbone
    assert model(IMAGES).shape == (4, model.head_hidden_size)


@pytest.mark.parametrize("foreach", [True, False])
def test_a_moving_average_is_cut_along_and_goes_on(foreach: bool) -> None:
    model = create("resnet10t")
    average = timm.utils.ModelEmaV3(model, decay=0.5, foreach=foreach)
    pruned(model, average)
    shapes = [value.shape for value in model.state_dict().values()]
    assert [value.shape for value in average.module.state_dict().values()] == shapes
    before = average.module.conv1[0].weight.clone()
    average.update(model)
    expected = before.lerp(model.conv1[0].weight, 0.5)
    assert torch.equal(average.module.conv1[0].weight, expected)
    average.set(model)
    assert torch.equal(average(IMAGES), model(IMAGES))


@pytest.mark.parametrize("kind", ["rep", "one"], ids=["RepVGG", "MobileOne"])
def test_branches_are_merged_after_the_cut(kind: str) -> None:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    more = {"block_kwargs": {"num_conv_branches": 2}} if kind == "one" else {}
    blocks = tuple(ByoBlockCfg(type=kind, d=2, c=c, s=2, gs=0, **more) for c in (12, 16))
    model = pruned(ByobNet(ByoModelCfg(blocks=blocks, stem_type=kind, stem_chs=12), CLASSES))
    branches = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    merged = timm.utils.reparameterize_model(model)
    layers = [layer for layer in merged.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) < len(branches)
    assert close(merged(IMAGES), model(IMAGES))


def test_a_pruned_model_is_saved_and_loaded_without_its_head(tmp_path: Any) -> None:
    """Transfer: the pruned backbone with a classifier for other classes."""
    model: Any = pruned(create("resnet10t"))
    model.reset_classifier(7)
    dp.save(tmp_path, model)
    other = timm.create_model("resnet10t", num_classes=7)
    assert torch.equal(dp.load(tmp_path, other).eval()(IMAGES), model.eval()(IMAGES))
