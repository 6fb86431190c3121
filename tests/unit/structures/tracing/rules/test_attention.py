"""Multi-head attention as one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cases import Lambda
from decayprune.structures import StructureMap, trace


def around(attention: nn.MultiheadAttention, key: nn.Module | None = None) -> StructureMap:
    """A stem, attention of its outputs (to a second width, where there is one), a head."""

    def forward(m: Lambda, x: torch.Tensor) -> torch.Tensor:
        y = m.stem(x)
        other = y if key is None else m.key(x)
        return m.head(m.attention(y, other, other, need_weights=False)[0])

    parts = {} if key is None else {"key": key}
    model = Lambda(
        forward, stem=nn.Linear(5, 8), attention=attention, **parts, head=nn.Linear(8, 3)
    )
    return trace(model, torch.randn(4, 2, 5))


def test_heads_and_inputs_are_structures_of_their_own() -> None:
    structures = around(nn.MultiheadAttention(8, 4))
    assert [(g.layer, g.size, g.width) for g in structures.groups] == [
        ("stem", 8, 1),
        ("attention", 4, 6),
        ("attention.out_proj", 8, 1),
    ]
    slices = {(item.name, item.dim): item for item in structures.slices}
    rows = slices["attention.in_proj_weight", 0]
    heads = torch.arange(8, 12).repeat_interleave(2)
    assert torch.equal(rows.structure, heads.repeat(3))
    assert not rows.carrier.any()  # the columns of the output projection do: they are linear
    assert slices["attention.out_proj.weight", 1].carrier.all()
    attributes = {(m, a) for m, a, *_ in structures.attributes}
    assert {("attention", "num_heads"), ("attention", "embed_dim")} <= attributes


def test_keys_of_another_width_are_read_by_weights_of_their_own() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
    structures = around(attention, nn.Linear(5, 6))
    roles = {(item.name, item.dim): item.role for item in structures.slices}
    assert roles["attention.k_proj_weight", 1] == roles["attention.v_proj_weight", 1] == "column"
    sizes = {g.layer: (g.size, g.width) for g in structures.groups}
    assert sizes["key"] == (6, 1)
    assert sizes["attention"] == (2, 4)  # along each of the three weights


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_what_is_no_plain_attention_stays_whole(option: str) -> None:
    structures = around(nn.MultiheadAttention(8, 4, **{option: True}))
    assert structures.num_structures == 0
    reasons = {item.reason for item in structures.refusals}
    assert any("no plain nn.MultiheadAttention" in reason for reason in reasons)
