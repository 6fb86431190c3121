"""Attention by heads: called and computing like torch's own, and with heads that have left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from decayprune.structures.exact.swap import become

MASKS = {
    "none": {},
    "causal": {
        "attn_mask": nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64),
        "is_causal": True,
    },
    "bool": {"attn_mask": torch.ones(5, 5).triu(1).bool()},
    "by head": {"attn_mask": torch.randn(8, 5, 5, dtype=torch.float64)},
    "padding": {"key_padding_mask": torch.arange(5).expand(2, 5) > 3},
    "both": {
        "key_padding_mask": torch.arange(5).expand(2, 5) > 3,
        "attn_mask": torch.ones(5, 5).triu(1).bool(),
    },
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_headwise_attention_is_called_like_torchs(mask: str, needed: bool, first: bool) -> None:
    module = nn.MultiheadAttention(8, 4, batch_first=first).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    x = x if first else x.transpose(0, 1)
    options = MASKS[mask] | {"need_weights": needed, "average_attn_weights": mask != "bool"}
    for inputs in ((x, x, x), (x, x + 1, x)):
        expected, weights = module(*inputs, **options)
        back = become(module)
        found, ours = module(*inputs, **options)
        back()
        assert torch.allclose(found, expected)
        assert (ours is None) == (weights is None)
        assert ours is None or torch.allclose(ours, weights)


def test_dropout_in_train_mode_only() -> None:
    module = nn.MultiheadAttention(8, 4, dropout=0.5)
    become(module)
    x = torch.randn(5, 2, 8)
    for needed in (True, False):
        assert not torch.equal(*(module(x, x, x, need_weights=needed)[0] for _ in range(2)))
    module.eval()
    assert torch.equal(*(module(x, x, x)[0] for _ in range(2)))


def test_causal_without_a_mask_is_refused_as_torch_does() -> None:
    module = nn.MultiheadAttention(8, 4)
    become(module)
    x = torch.randn(5, 2, 8)
    with pytest.raises(RuntimeError, match="attn_mask together with is_causal"):
        module(x, x, x, is_causal=True)


@pytest.mark.parametrize("needed", [True, False])
def test_a_head_that_left_equals_one_whose_outputs_are_not_read(needed: bool) -> None:
    module = nn.MultiheadAttention(8, 4, bias=False).double().eval()
    become(module)
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    with torch.no_grad():
        module.out_proj.weight[:, 2:4] = 0  # the second head, two columns wide
    expected, _ = module(x, x, x, need_weights=needed)
    kept = torch.tensor([0, 1, 4, 5, 6, 7])
    rows = torch.cat([kept, kept + 8, kept + 16])
    module.in_proj_weight.data = module.in_proj_weight.data[rows]
    module.out_proj.weight.data = module.out_proj.weight.data[:, kept]
    module.num_heads = 3
    found, weights = module(x, x, x, need_weights=needed, average_attn_weights=False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not needed or weights.shape == (2, 3, 5, 5)
