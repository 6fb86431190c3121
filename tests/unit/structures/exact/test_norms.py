"""Normalisers that count what left, against the plain ones over activations padded by zeros."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import ChannelsFirst, PlainRMSNorm, _randomise
from decayprune.structures.exact.attention import HeadwiseAttention
from decayprune.structures.exact.norms import (
    CountingGroupNorm,
    CountingLayerNorm,
    CountingRMSNorm,
    counting_layer_norm,
)
from decayprune.structures.exact.swap import become, counted_width, stand_in


def randomised(norm: nn.Module) -> nn.Module:
    norm.double()
    _randomise(norm)
    return norm


def shrink(norm: nn.Module, keep: list[int]) -> None:
    """What a cut does to a normaliser."""
    become(norm)
    for parameter in norm.parameters():
        parameter.data = parameter.data[keep]
    if isinstance(norm, nn.GroupNorm):
        norm.num_channels = len(keep)
    else:
        norm.normalized_shape = (len(keep),)


NORMS = {
    "layer": lambda: nn.LayerNorm(6, eps=0.1),
    "bare": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "weight": lambda: nn.LayerNorm(6, bias=False),
    "first": lambda: ChannelsFirst(6),
    "group": lambda: nn.GroupNorm(2, 6),
    "one group": lambda: nn.GroupNorm(1, 6, eps=0.1),
    "rms": lambda: nn.RMSNorm(6, eps=0.1),
    "rms without eps": lambda: nn.RMSNorm(6),
    "own rms": lambda: PlainRMSNorm(6),
}


@pytest.mark.parametrize("name", NORMS)
def test_missing_channels_count_as_zeros(name: str) -> None:
    norm = randomised(NORMS[name]())
    dim = 1 if isinstance(norm, (nn.GroupNorm, ChannelsFirst)) else -1
    keep = [1, 2, 4, 5]
    x = torch.randn(2, 6, 3, 6, dtype=torch.float64) + 3
    x.index_fill_(dim, torch.tensor([0, 3]), 0)
    expected = norm(x).index_select(dim, torch.tensor(keep))
    shrink(norm, keep)
    found = norm(x.index_select(dim, torch.tensor(keep)))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert counted_width(norm) == 6
    assert "counted=6" in repr(norm)


def test_the_variance_is_stable_far_from_zero() -> None:
    x = 1e4 + torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    padded = F.pad(x.double(), (0, 64))
    expected = F.layer_norm(padded, (128,))[:, :64]
    assert (counting_layer_norm(x, 128, None, None, 1e-5) - expected).abs().max() < 1e-4
    nearly_all = F.layer_norm(F.pad(x.double(), (0, 1)), (65,))[:, :64]
    assert (counting_layer_norm(x, 65, None, None, 1e-5) - nearly_all).abs().max() < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    norm = nn.LayerNorm(8)
    shrink(norm, [0, 1, 2])
    x = torch.randn(4, 3)
    found = norm.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), norm.float()(x), atol=2e-2)


def test_who_needs_a_stand_in() -> None:
    assert stand_in(nn.LayerNorm(4)) is CountingLayerNorm
    assert stand_in(nn.LayerNorm((4, 4))) is None
    assert stand_in(nn.GroupNorm(2, 4)) is CountingGroupNorm
    assert stand_in(nn.GroupNorm(4, 4)) is None  # every channel by itself
    assert stand_in(nn.RMSNorm(4)) is CountingRMSNorm
    assert stand_in(nn.MultiheadAttention(4, 2)) is HeadwiseAttention
    assert stand_in(nn.MultiheadAttention(4, 2, add_bias_kv=True)) is None
    assert stand_in(nn.Conv2d(3, 4, 3)) is None


def test_an_rms_norm_is_believed_only_if_it_computes_one() -> None:
    class OffByOneRMSNorm(PlainRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    class TwoInputsRMSNorm(PlainRMSNorm):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return super().forward(x * gate)

    assert stand_in(PlainRMSNorm(4)) is CountingRMSNorm
    assert stand_in(OffByOneRMSNorm(4)) is None
    assert stand_in(TwoInputsRMSNorm(4)) is None


@pytest.mark.parametrize(
    "make", [*NORMS.values(), lambda: nn.MultiheadAttention(6, 2)], ids=[*NORMS, "attention"]
)
def test_there_is_a_way_back(make) -> None:
    module = make()
    before, kind, text = dict(vars(module)), type(module), repr(module)
    back = become(module)
    assert type(module) is stand_in(module) is not kind
    back()
    assert type(module) is kind
    assert vars(module).keys() == before.keys()
    assert repr(module) == text
    back = become(nn.Linear(2, 2))
    back()


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
