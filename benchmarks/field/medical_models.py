"""Segmentation: segmentation-models-pytorch and monai."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .measure import Draw, Make

SMP = {
    "smp_unet": ("Unet", {"encoder_name": "resnet18"}),
    "smp_unet_mobilenet": ("Unet", {"encoder_name": "mobilenet_v2"}),
    "smp_unet_scse": ("Unet", {"encoder_name": "resnet18", "decoder_attention_type": "scse"}),
    "smp_unetplusplus": ("UnetPlusPlus", {"encoder_name": "resnet18"}),
    "smp_manet": ("MAnet", {"encoder_name": "resnet18"}),
    "smp_linknet": ("Linknet", {"encoder_name": "resnet18"}),
    "smp_fpn": ("FPN", {"encoder_name": "efficientnet-b0"}),
    "smp_pspnet": ("PSPNet", {"encoder_name": "resnet18"}),
    "smp_deeplabv3plus": ("DeepLabV3Plus", {"encoder_name": "resnet18"}),
    "smp_pan": ("PAN", {"encoder_name": "resnet18"}),
    "smp_upernet": ("UPerNet", {"encoder_name": "resnet18"}),
    "smp_segformer": ("Segformer", {"encoder_name": "mit_b0"}),
}


def _smp(kind: str, options: dict[str, Any]) -> tuple[nn.Module, Draw]:
    import segmentation_models_pytorch as smp

    model = getattr(smp, kind)(encoder_weights=None, classes=4, **options)
    return model, lambda: torch.randn(1, 3, 128, 128)


VOLUMES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "monai_unet": (
        "UNet",
        {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 3,
            "channels": (16, 32, 64),
            "strides": (2, 2),
            "num_res_units": 2,
        },
        (1, 1, 32, 32, 32),
    ),
    "monai_attention_unet": (
        "AttentionUnet",
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 3,
            "channels": (16, 32, 64),
            "strides": (2, 2),
        },
        (1, 1, 64, 64),
    ),
    "monai_basic_unet": (
        "BasicUNet",
        {"spatial_dims": 2, "out_channels": 3, "features": (16, 16, 32, 64, 64, 16)},
        (1, 1, 64, 64),
    ),
    "monai_segresnet": (
        "SegResNet",
        {"spatial_dims": 3, "init_filters": 16, "out_channels": 3},
        (1, 1, 32, 32, 32),
    ),
    "monai_unetr": (
        "UNETR",
        {
            "in_channels": 1,
            "out_channels": 3,
            "img_size": (32, 32, 32),
            "feature_size": 8,
            "hidden_size": 96,
            "mlp_dim": 192,
            "num_heads": 4,
        },
        (1, 1, 32, 32, 32),
    ),
    "monai_swin_unetr": (
        "SwinUNETR",
        {"in_channels": 1, "out_channels": 3, "feature_size": 12, "spatial_dims": 2},
        (1, 1, 64, 64),
    ),
    "monai_vnet": ("VNet", {"spatial_dims": 3, "out_channels": 3}, (1, 1, 32, 32, 32)),
    "monai_densenet": (
        "DenseNet121",
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 3},
        (1, 1, 64, 64),
    ),
}


def _monai(kind: str, options: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, Draw]:
    from monai.networks import nets

    build: Callable[..., nn.Module] = getattr(nets, kind)
    return build(**options), lambda: torch.randn(shape)


SMP_MODELS: dict[str, Make] = {name: partial(_smp, *entry) for name, entry in SMP.items()}
MONAI_MODELS: dict[str, Make] = {name: partial(_monai, *entry) for name, entry in VOLUMES.items()}
