"""The models of the field zoo, by family."""

from __future__ import annotations

from . import (
    diffusers_models,
    medical_models,
    own_nets,
    timm_models,
    torchvision_models,
    transformers_models,
    yolo_models,
)
from .measure import Make

FAMILIES: dict[str, dict[str, Make]] = {
    "own nets": own_nets.MODELS,
    "torchvision": torchvision_models.MODELS,
    "transformers": transformers_models.MODELS,
    "ultralytics": yolo_models.MODELS,
    "segmentation_models_pytorch": medical_models.SMP_MODELS,
    "monai": medical_models.MONAI_MODELS,
    "diffusers": diffusers_models.MODELS,
    "timm": timm_models.MODELS,
}
"""Models by name, by family; but for the first, a family is named after the package it needs."""

MODELS: dict[str, Make] = {}
for _family in FAMILIES.values():
    assert not MODELS.keys() & _family.keys(), "names are unique: a result is a file"
    MODELS.update(_family)
