"""A fixed sample of the field zoo, and that its checks can fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from benchmarks.field.families import FAMILIES, MODELS
from benchmarks.field.measure import BUDGET, Draw, Make, measure
from benchmarks.field.page import document, page
from torch import Tensor, nn

OWN = (
    "own_gan_generator",
    "own_edsr",
    "own_rrdb",
    "own_vae",
    "own_siamese",
    "own_film",
    "own_hypernetwork",
    "own_gan_discriminator",
    "own_tcn",
    "own_wavenet",
    "own_gru",
)
OF_TORCHVISION = (
    "lraspp_mobilenet_v3_large",
    "deeplabv3_mobilenet_v3_large",
    "raft_small",
    pytest.param("fasterrcnn_mobilenet_v3_large_fpn", marks=pytest.mark.slow),
)
OF_TRANSFORMERS = (
    "bert",
    "distilbert",
    "gpt2",
    "llama",
    "mixtral",
    "t5",
    "whisper",
    "bart",
    "clip",
    "falcon",
    "mamba",
)
PLACES = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}
OF_TIMM: dict[str, dict[str, Any]] = {  # at a fraction of their widths; `size` is that of an image
    "vit_tiny_patch16_224": PLACES,
    "deit_tiny_distilled_patch16_224": PLACES,
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 2),
    },
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (16, 16, 24, 24)},
    "tinynet_e": {"size": 64},  # an EfficientNet
    "resnetblur18": {
        "size": 64,
        "layers": (1, 1, 1, 1),
        "channels": (16, 24, 32, 48),
        "avg_down": True,  # ResNet-D
        "stem_type": "deep",
        "stem_width": 16,
    },
    "eca_nfnet_l0": {
        "size": 64,
        "depths": (1, 1, 1, 1),
        "channels": (16, 24, 32, 48),
        "stem_chs": 16,
        "group_size": 8,
        "num_features": 0,
    },
}
CLASSES_OF_TIMM: dict[str, dict[str, Any]] = {
    "mlp_mixer.MlpMixer": {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 32},
    "metaformer.MetaFormer": {"size": 64, "depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)},
    "levit.Levit": {
        "size": 64,
        "img_size": 64,
        "embed_dim": (32, 48),
        "key_dim": 8,
        "depth": (1, 1),
        "num_heads": (2, 3),
    },
    "hiera.Hiera": {
        "size": 64,
        "img_size": (64, 64),
        "embed_dim": 16,
        "num_heads": 1,
        "stages": (1, 1, 1, 1),
        "mask_unit_size": (4, 4),
        "q_pool": 2,
    },
}


def check(make: Make) -> None:
    """Pruned to the budget, exact on other inputs in both modes, trained on, saved and loaded."""
    row = measure(make)
    assert row["outcome"] == "pruned", row["words"]
    assert row["macs_after"] <= BUDGET * row["macs_before"]
    assert row["error_evaluation"] < 1e-4


# The old weight norm is what the network of that name is about.
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", OWN)
def test_own_nets(name: str) -> None:
    check(MODELS[name])


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_models_of_torchvision(name: str) -> None:
    check(MODELS[name])


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_models_of_transformers(name: str) -> None:
    pytest.importorskip("transformers", reason="models of transformers")
    check(MODELS[name])


def test_a_model_of_ultralytics() -> None:
    pytest.importorskip("ultralytics", reason="a model of ultralytics")
    check(MODELS["yolo11n"])


@pytest.mark.parametrize("name", OF_TIMM)
def test_models_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="models of timm")
    check(sized(partial(timm.create_model, name), **OF_TIMM[name]))


@pytest.mark.parametrize("name", CLASSES_OF_TIMM)
def test_models_of_timm_by_their_classes(name: str) -> None:
    models = pytest.importorskip("timm.models", reason="models of timm")
    module, kind = name.split(".")
    check(sized(getattr(getattr(models, module), kind), **CLASSES_OF_TIMM[name]))


@pytest.mark.parametrize("kind", ["rep", "one"], ids=["RepVGG", "MobileOne"])
def test_models_of_timm_with_branches_that_are_merged(kind: str) -> None:
    byobnet = pytest.importorskip("timm.models.byobnet", reason="models of timm")
    blocks = tuple(byobnet.ByoBlockCfg(type=kind, d=2, c=c, s=2, gs=0) for c in (16, 24))
    config = byobnet.ByoModelCfg(blocks=blocks, stem_type=kind, stem_chs=16)
    check(sized(partial(byobnet.ByobNet, config)))


def sized(build: Callable[..., nn.Module], size: int = 32, **options: Any) -> Make:
    return lambda: (build(num_classes=5, **options), lambda: torch.randn(1, 3, size, size))


class Narrow(nn.Module):
    """Computes something else on other inputs than those that a pruner has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.b(y) if x.mean() > 0 else self.b(y) * y.shape[1]


def _narrow() -> tuple[nn.Module, Draw]:
    signs = iter([1.0, -1.0])
    return Narrow(), lambda: next(signs) * torch.rand(2, 4)


def _cannot_run() -> tuple[nn.Module, Draw]:
    return nn.Linear(4, 8), lambda: torch.rand(2, 5)


def _single() -> tuple[nn.Module, Draw]:
    return nn.Linear(4, 8), lambda: torch.rand(2, 4)


@pytest.mark.parametrize(
    ("make", "outcome"),
    [(_narrow, "compared"), (_cannot_run, "made"), (_single, "refused")],
)
def test_what_goes_wrong_is_told_by_its_step(
    make: Callable[[], tuple[nn.Module, Draw]], outcome: str
) -> None:
    row = measure(make)
    assert row["outcome"] == outcome
    assert row["words"]


def test_the_page_counts_what_was_found_by_family() -> None:
    refused = {"outcome": "refused", "words": "Nothing | at all", "params_before": 5}
    found = document({"own_edsr": measure(MODELS["own_edsr"]), "own_vae": refused})
    assert list(found["families"]) == list(FAMILIES)
    text = page(found)
    assert "| own nets | 2 | 1 | 1 | 0 |" in text
    assert "| **all** | **2** | **1** | **1** | **0** |" in text
    assert "| own_edsr | 0.1" in text
    assert "**refused**: Nothing \\| at all |" in text
