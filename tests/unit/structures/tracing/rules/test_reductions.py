"""What runs along the channels needs them all, except where zeros make no difference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ruled import groups


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x / x.sum(1, keepdim=True),
        lambda x: x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-6),
        lambda x: x / x.norm(dim=1, keepdim=True).expand_as(x),
        lambda x: x / torch.norm(x, p=2, dim=1, keepdim=True),
        lambda x: F.normalize(x, dim=1),
        lambda x: torch.fft.fft(x, dim=0).abs(),
    ],
)
def test_channels_of_zeros_are_not_seen_by_a_sum(between) -> None:
    assert groups(between) == [(6, 1)]
