"""Who hands out a width, who reads it, who only scales it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import Lambda
from decayprune.structures import StructureMap, trace
from reference.cut import cut, zeroed


def keys(structures: StructureMap) -> dict[tuple[str, int], str]:
    return {(item.name, item.dim): item.role for item in structures.slices}


def test_rows_and_columns_of_a_transposed_convolution_change_places() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(6, 2, 1))
    found = keys(trace(model, torch.randn(1, 2, 4, 4)))
    assert found["1.weight", 0] == "column"
    assert found["1.weight", 1] == found["1.bias", 0] == "row"


def test_every_group_of_a_convolution_loses_the_same_offsets() -> None:
    model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.Conv1d(6, 4, 1, groups=2), nn.Conv1d(4, 2, 1))
    structures = trace(model, torch.randn(1, 2, 5))
    assert [(g.layer, g.size, g.width) for g in structures.groups] == [("0", 3, 2), ("1", 2, 2)]
    first = next(s for s in structures.slices if s.name == "0.weight")
    assert first.structure.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_depthwise_convolution_hands_nothing_out() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 8, 3, groups=4), nn.Conv1d(8, 2, 1))
    structures = trace(model, torch.randn(1, 2, 5))
    assert keys(structures)["1.weight", 0] == "affine"
    labels = next(s for s in structures.slices if s.name == "1.weight").structure
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    counted = {attribute for module, attribute, *_ in structures.attributes if module == "1"}
    assert counted == {"in_channels", "out_channels", "groups"}


def test_a_layer_called_twice_hands_out_its_first_labels() -> None:
    model = Lambda(lambda m, x: m.b(m.a(x) + m.a(x.flip(0))), a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    assert trace(model, torch.randn(2, 4)).num_structures == 6


@pytest.mark.parametrize("beta", [1, 0.5])
def test_addmm_is_a_linear_layer(beta: float) -> None:
    model = Lambda(
        lambda m, x: m.b(torch.addmm(m.bias, x, m.weight, beta=beta)),
        weight=nn.Parameter(torch.randn(4, 6)),
        bias=nn.Parameter(torch.randn(6)),
        b=nn.Linear(6, 3),
    )
    slices = keys(trace(model, torch.randn(2, 4)))
    assert slices.keys() == {("weight", 1), ("bias", 0), ("b.weight", 1)}
    assert slices["weight", 1] == "row"


def test_tokens_that_index_a_table_are_fixed() -> None:
    model = Lambda(
        lambda m, x: m.b(m.table(m.a(x).argmax(1))),
        a=nn.Linear(4, 6),
        table=nn.Embedding(6, 5),
        b=nn.Linear(5, 3),
    )
    assert [g.layer for g in trace(model, torch.randn(2, 4)).groups] == ["table"]


def over_tokens(bias: bool, after: nn.Module) -> nn.Module:
    """As MLP-Mixer: two layers over the five tokens, added to a width that norms count."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.second(m.first(m.before(x).mT).relu()).mT
        return m.head(m.after(x))

    return Lambda(
        forward,
        stem=nn.Linear(4, 6),
        before=nn.LayerNorm(6),
        first=nn.Linear(5, 7, bias=bias),
        second=nn.Linear(7, 5, bias=bias),
        after=after,
        head=nn.Linear(6, 3),
    ).double()


def test_a_bias_over_tokens_moves_zeros_that_a_norm_counts() -> None:
    torch.manual_seed(0)
    model, x = over_tokens(True, nn.LayerNorm(6)), torch.randn(2, 5, 4).double()
    refused = {refusal.layer: refusal.reason for refusal in trace(model, x).refusals}
    assert refused["stem"].startswith(
        "channels of zeros get the bias of `first` and the bias of `second` before `after` takes "
        "their mean; without that they could leave ("
    )
    model = over_tokens(False, nn.LayerNorm(6))
    structures = trace(model, x)
    assert [(group.layer, group.size) for group in structures.groups] == [("stem", 6)]
    torch.testing.assert_close(
        cut(model, structures, {1, 4})(x), zeroed(model, structures, {1, 4})(x), rtol=0, atol=1e-13
    )


def test_a_bias_over_tokens_is_scaled_by_the_columns_that_read_it() -> None:
    torch.manual_seed(0)
    model, x = over_tokens(True, nn.Identity()), torch.randn(2, 5, 4).double()
    structures = trace(model, x)
    carriers = {item.name for item in structures.slices if item.carrier.any()}
    assert carriers == {"stem.weight", "stem.bias", "before.weight", "before.bias", "head.weight"}
    torch.testing.assert_close(
        cut(model, structures, {1, 4})(x), zeroed(model, structures, {1, 4})(x), rtol=0, atol=1e-13
    )
