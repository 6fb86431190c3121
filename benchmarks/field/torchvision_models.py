"""Models of torchvision beside the classifiers (those are the zoo of ``benchmarks/zoo.py``)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from .measure import Draw, Make

DETECTION = {
    "fasterrcnn_resnet50_fpn": 96,
    "fasterrcnn_resnet50_fpn_v2": 96,
    "fasterrcnn_mobilenet_v3_large_fpn": 96,
    "maskrcnn_resnet50_fpn": 96,
    "keypointrcnn_resnet50_fpn": 96,
    "retinanet_resnet50_fpn": 96,
    "fcos_resnet50_fpn": 96,
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 320,
}
SEGMENTATION = (
    "fcn_resnet50",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)
VIDEO = {"r3d_18": 64, "mc3_18": 64, "r2plus1d_18": 64, "mvit_v2_s": 224, "swin3d_t": 64}


def _bare(name: str, **options: Any) -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def _detector(name: str, size: int) -> tuple[nn.Module, Draw]:
    options = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
    model = _bare(name, weights_backbone=None, **options)
    for head in model.modules():  # random scores: everything is found
        if hasattr(head, "score_thresh"):
            head.score_thresh = 0.0
    return model, lambda: ([torch.rand(3, size, size)],)


def _segmenter(name: str) -> tuple[nn.Module, Draw]:
    return _bare(name, weights_backbone=None), lambda: torch.randn(1, 3, 96, 96)


def _video(name: str, size: int) -> tuple[nn.Module, Draw]:
    frames = 16 if name == "mvit_v2_s" else 8
    return _bare(name), lambda: torch.randn(1, 3, frames, size, size)


def _flow() -> tuple[nn.Module, Draw]:
    def draw() -> dict[str, Any]:
        first, second = torch.rand(2, 1, 3, 128, 128)
        return {"image1": first, "image2": second, "num_flow_updates": 2}

    return _bare("raft_small"), draw


MODELS: dict[str, Make] = {
    **{name: partial(_detector, name, size) for name, size in DETECTION.items()},
    **{name: partial(_segmenter, name) for name in SEGMENTATION},
    **{name: partial(_video, name, size) for name, size in VIDEO.items()},
    "raft_small": _flow,
}
