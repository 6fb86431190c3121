"""Models of diffusers: denoisers and autoencoders."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .measure import Draw, Make

BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet2d": (
        "UNet2DModel",
        BLOCKS
        | {
            "sample_size": 32,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "unet2d_condition": (
        "UNet2DConditionModel",
        BLOCKS
        | {
            "sample_size": 32,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
    ),
    "autoencoder_kl": (
        "AutoencoderKL",
        BLOCKS
        | {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
    ),
    "autoencoder_tiny": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (32, 32),
            "decoder_block_out_channels": (32, 32),
            "num_encoder_blocks": (1, 2),
            "num_decoder_blocks": (2, 1),
        },
    ),
    "vq_model": (
        "VQModel",
        BLOCKS
        | {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "sample_size": 16},
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 32,
            "in_channels": 4,
            "out_channels": 4,
        },
    ),
}


def _inputs(name: str) -> dict[str, Tensor]:
    step = torch.randint(0, 900, (1,))
    if name == "unet2d":
        return {"sample": torch.randn(1, 3, 32, 32), "timestep": step}
    if name == "unet2d_condition":
        told = torch.randn(1, 5, 32)
        return {
            "sample": torch.randn(1, 4, 32, 32),
            "timestep": step,
            "encoder_hidden_states": told,
        }
    if name == "dit":
        kind = torch.randint(0, 900, (1,))
        return {"hidden_states": torch.randn(1, 4, 16, 16), "timestep": step, "class_labels": kind}
    if name == "sd3":
        told, pooled = torch.randn(1, 5, 32), torch.randn(1, 32)
        seen = {"hidden_states": torch.randn(1, 4, 16, 16), "timestep": step}
        return seen | {"encoder_hidden_states": told, "pooled_projections": pooled}
    return {"sample": torch.randn(1, 3, 32, 32)}


def _diffuser(name: str) -> tuple[nn.Module, Draw]:
    import diffusers

    kind, options = KINDS[name]
    return getattr(diffusers, kind)(**options), partial(_inputs, name)


MODELS: dict[str, Make] = {f"diffusers_{name}": partial(_diffuser, name) for name in KINDS}
