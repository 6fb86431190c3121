"""Attention in shifted windows that may lose heads, and channels of its input.

torchvision's Swin computes the width of a head from the width of the input, so that neither can
shrink alone. The module here remembers it. It computes the same, on the same parameters: the
modules that it stands in for become it when something leaves (see swap.py).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadwiseWindowAttention(nn.Module):
    """What a ``ShiftedWindowAttention`` of torchvision, version 1 or 2, becomes.

    Attributes:
        replaced: Name of the class it was before.
        counted: Width of the input before anything left.
        dim: Width of the input.
        num_heads: Heads that are left.
        head_dim: Width of each.

    Reference: Liu et al., Swin Transformer, arXiv 2103.14030; version 2, arXiv 2111.09883.
    """

    replaced: str
    counted: int
    dim: int
    num_heads: int
    head_dim: int

    # What it has from the module that it was.
    qkv: nn.Linear
    proj: nn.Linear
    window_size: list[int]
    shift_size: list[int]
    attention_dropout: float
    dropout: float
    relative_position_index: Tensor
    relative_position_bias_table: Tensor  # of version 1
    relative_coords_table: Tensor  # and the others of version 2
    cpb_mlp: nn.Module
    logit_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        (high, wide), (height, width) = self.window_size, x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % high))
        # A window as large as the image has nothing to be shifted against.
        sizes = zip(self.shift_size, self.window_size, x.shape[1:3], strict=True)
        down, right = (0 if window >= size else shift for shift, window, size in sizes)
        x = x.roll((-down, -right), (1, 2)) if down or right else x
        windows = _windows(x, high, wide)
        mask = self._mask(x, down, right) if down or right else None
        y = self._attend(windows.flatten(0, 2), mask).view(*windows.shape[:4], -1)
        y = torch.unflatten(y, 3, (high, wide)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        y = y.roll((down, right), (1, 2)) if down or right else y
        return y[:, :height, :width].contiguous()

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside each window, ``(windows, places, C)``; the mask is per window."""
        bias: Tensor | None = self.qkv.bias
        second = hasattr(self, "logit_scale")
        if second and bias is not None:  # keys have no bias in version 2
            third = bias.numel() // 3
            bias = torch.cat([bias[:third], torch.zeros_like(bias[:third]), bias[2 * third :]])
        qkv = torch.unflatten(F.linear(x, self.qkv.weight, bias), -1, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if second:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * self.logit_scale.clamp(max=math.log(100.0)).exp()
        else:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        scores = scores + self._bias()
        if mask is not None:
            scores = torch.unflatten(scores, 0, (-1, len(mask))) + mask[:, None]
            scores = scores.flatten(0, 1)
        scores = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        y = (scores @ v).transpose(1, 2).flatten(2)
        y = F.linear(y, self.proj.weight, self.proj.bias)
        return F.dropout(y, self.dropout, self.training)

    def _bias(self) -> Tensor:
        """What the place of a key relative to the query adds, ``(1, heads, places, places)``."""
        if hasattr(self, "cpb_mlp"):
            table: Tensor = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        else:
            table = self.relative_position_bias_table
        places = self.window_size[0] * self.window_size[1]
        found = table[self.relative_position_index].view(places, places, -1).permute(2, 0, 1)
        return (16 * found.sigmoid() if hasattr(self, "cpb_mlp") else found)[None]

    def _mask(self, x: Tensor, down: int, right: int) -> Tensor:
        """-100 between places that the shift brought together, ``(windows, places, places)``."""
        regions = torch.zeros(1, *x.shape[1:3], 1, device=x.device)
        for dim, shift, window in ((1, down, self.window_size[0]), (2, right, self.window_size[1])):
            place = torch.arange(x.shape[dim], device=x.device)
            part = (place >= len(place) - window).long() + (place >= len(place) - shift)
            shape = [1, 1, 1, 1]
            shape[dim] = -1
            regions = 3 * regions + (part.view(shape) if shift else 0)
        regions = _windows(regions, *self.window_size).flatten(0, 2).squeeze(-1)
        return (regions[:, None] != regions[:, :, None]).to(x.dtype) * -100.0


def _windows(x: Tensor, high: int, wide: int) -> Tensor:
    """Divide ``(B, H, W, C)`` into windows: ``(B, rows, columns, places, C)``."""
    columns = torch.unflatten(x, 2, (-1, wide))
    return torch.unflatten(columns, 1, (-1, high)).transpose(2, 3).flatten(3, 4)
