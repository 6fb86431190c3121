"""Which widths all blocks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decayprune.structures import trace
from decayprune.structures.streams import residual_streams
from loops import INPUTS, net
from residual_nets import Block


def mixer(blocks: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), *(Block(8, act=torch.relu) for _ in range(blocks)), nn.Linear(8, 3)
    )


def streams(model: nn.Module, inputs: Tensor) -> list[str]:
    structures = trace(model, inputs)
    found = residual_streams(model, structures)
    assert found.shape == (len(structures.groups),)
    return [g.layer for g, is_one in zip(structures.groups, found.tolist(), strict=True) if is_one]


def test_the_width_that_blocks_add_to_and_norms_read() -> None:
    assert streams(mixer(2), torch.randn(2, 6)) == ["0"]


def test_what_one_block_alone_adds_to_is_none() -> None:
    assert streams(mixer(1), torch.randn(2, 6)) == []


def test_a_stream_with_batch_norm_is_none() -> None:
    assert streams(net(), INPUTS) == []
