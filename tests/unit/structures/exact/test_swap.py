"""Who becomes which stand-in, and the way back."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from cases import ChannelsFirst, PlainRMSNorm, ScaledConv, StandardisedConv
from decayprune.structures.exact.attention import HeadwiseAttention
from decayprune.structures.exact.norms import CountingGroupNorm, CountingLayerNorm, CountingRMSNorm
from decayprune.structures.exact.swap import (
    become,
    become_all,
    counted_width,
    normalisers_shown,
    stand_in,
)


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


def test_modules_that_are_alike_are_looked_into_once() -> None:
    runs = []

    class Counted(PlainRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(x.shape)
            return super().forward(x)

    one, alike, wider = Counted(4), Counted(4), Counted(5)
    become(one)
    once = len(runs)
    assert once > 0
    assert stand_in(alike) is CountingRMSNorm
    assert counted_width(alike) == 4
    become(alike)
    assert len(runs) == once
    assert vars(alike)["affine"] == vars(one)["affine"]
    assert stand_in(wider) is CountingRMSNorm
    assert counted_width(wider) == 5
    assert len(runs) > once


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LayerNorm(6),
        lambda: ChannelsFirst(6),
        lambda: nn.GroupNorm(2, 6),
        lambda: nn.RMSNorm(6),
        lambda: PlainRMSNorm(6),
        lambda: nn.MultiheadAttention(6, 2),
        lambda: ScaledConv(3, 4, 3),
        lambda: StandardisedConv(3, 4, 3),
    ],
    ids=["layer", "first", "group", "rms", "own rms", "attention", "gain", "bare"],
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


def test_becoming_keeps_the_object_and_its_parameters() -> None:
    module = nn.LayerNorm(6)
    weight = module.weight
    become(module)
    assert module.weight is weight
    assert counted_width(module) == 6
    become(module)  # a second time changes nothing
    assert type(module) is CountingLayerNorm
    assert module.replaced == "LayerNorm"


def test_widths_are_counted_where_a_stand_in_has_to_know() -> None:
    assert counted_width(nn.GroupNorm(2, 6)) == 6
    assert counted_width(nn.GroupNorm(6, 6)) is None
    assert counted_width(PlainRMSNorm(5)) == 5
    assert counted_width(ScaledConv(6, 4, 3, groups=2)) == 3
    assert counted_width(nn.Linear(2, 2)) is None


def test_an_encoder_beside_a_stand_in_packs_no_tokens() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1)
    assert encoder.use_nested_tensor
    back = become_all(encoder, [encoder.layers[0].self_attn])
    assert not encoder.use_nested_tensor
    assert isinstance(encoder.layers[0].self_attn, HeadwiseAttention)
    back()
    assert encoder.use_nested_tensor
    assert type(encoder.layers[0].self_attn) is nn.MultiheadAttention


def test_a_tracer_sees_normalisers_of_any_library_for_a_while() -> None:
    model = nn.Sequential(PlainRMSNorm(4), nn.RMSNorm(4))
    with normalisers_shown(model):
        assert isinstance(model[0], CountingRMSNorm)
        assert type(model[1]) is nn.RMSNorm
    assert type(model[0]) is PlainRMSNorm
    assert not hasattr(model[0], "counted")
