"""YOLO models of ultralytics, from their configurations."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .measure import Draw, Make

NAMES = (
    "yolov3-tiny",
    "yolov5n",
    "yolov6n",
    "yolov8n",
    "yolov8n-cls",
    "yolov8n-seg",
    "yolov8n-pose",
    "yolov8n-obb",
    "yolov9t",
    "yolov10n",
    "yolo11n",
    "yolo11n-seg",
    "yolo12n",
    "rtdetr-l",
)


def _yolo(name: str) -> tuple[nn.Module, Draw]:
    from ultralytics import RTDETR, YOLO

    kind = RTDETR if name.startswith("rtdetr") else YOLO
    model: nn.Module = kind(f"{name}.yaml").model.float()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model, lambda: torch.rand(1, 3, 128, 128)


MODELS: dict[str, Make] = {name: partial(_yolo, name) for name in NAMES}
