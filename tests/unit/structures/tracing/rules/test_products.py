"""Contractions: pairs of dimensions, whole heads, and what is left alone by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Lambda
from decayprune.structures import trace
from reference.cut import cut, error, run, zeroed
from ruled import groups, reason, traced


def test_contracted_dimensions_are_tied_pair_by_pair() -> None:
    model = Lambda(
        lambda m, x: m.p(x) @ m.q(x).transpose(-1, -2), p=nn.Linear(4, 6), q=nn.Linear(4, 6)
    )
    structures = trace(model, torch.randn(2, 3, 4))
    assert [(g.layers, g.size) for g in structures.groups] == [(("p", "q"), 6)]


def test_outer_dimensions_keep_their_labels() -> None:
    assert groups(lambda x: torch.ones(3, 2, dtype=x.dtype) @ x) == [(6, 1)]
    assert groups(lambda x: (x.mT @ torch.ones(2, 3, dtype=x.dtype)).mT) == [(6, 1)]


def test_a_product_of_a_width_with_a_constant_fixes_it() -> None:
    why = reason(lambda x: x @ torch.eye(6, dtype=x.dtype))
    assert why == "meets channels that stay in matmul"


@pytest.mark.parametrize("fused", [True, False])
def test_whole_heads_leave(fused: bool) -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        q = k = v = x.unflatten(-1, (-1, 2)).transpose(1, 2)
        if fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) / 2**0.5).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2)

    assert groups(between, shape=(2, 5, 4)) == [(3, 2)]


def test_an_only_head_scales_by_its_width() -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    assert reason(between, shape=(2, 5, 4)) == "attention scales by the width of its only head"


def test_queries_that_share_a_key_head_leave_with_it() -> None:
    model = Lambda(
        lambda m, x: m.out(
            F.scaled_dot_product_attention(
                *(y.unflatten(-1, (-1, 2)).transpose(1, 2) for y in (m.q(x), m.k(x), m.v(x))),
                enable_gqa=True,
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        q=nn.Linear(4, 8),
        k=nn.Linear(4, 4),
        v=nn.Linear(4, 4),
        out=nn.Linear(8, 3),
    )
    structures = trace(model, torch.randn(2, 5, 4))
    queries = next(s for s in structures.slices if s.name == "q.weight").structure
    keys = next(s for s in structures.slices if s.name == "k.weight").structure
    assert queries.tolist() == [0] * 4 + [1] * 4
    assert keys.tolist() == [0, 0, 1, 1]


def test_a_bias_by_head_leaves_with_its_head() -> None:
    model = Lambda(
        lambda m, x: m.out(
            F.scaled_dot_product_attention(
                *(y.unflatten(-1, (3, 2)).transpose(1, 2) for y in (m.q(x), m.q(x), m.q(x))), m.bias
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        q=nn.Linear(4, 6),
        bias=nn.Parameter(torch.zeros(3, 5, 5)),
        out=nn.Linear(6, 3),
    )
    slices = {(item.name, item.dim): item for item in trace(model, torch.randn(2, 5, 4)).slices}
    assert slices["bias", 0].structure.tolist() == [0, 1, 2]


def test_an_unknown_operator_is_named_and_what_goes_in_stays() -> None:
    assert reason(lambda x: x * torch.linalg.qr(x)[0][:1, :1]) == "unknown operator `linalg_qr`"


def test_shapes_are_read_without_fixing_anything() -> None:
    assert groups(lambda x: x * (x.size(1) / x.numel())) == [(6, 1)]


def test_macs_of_products_shrink_with_their_labels() -> None:
    operators = traced(lambda x: torch.ones(3, 2, dtype=x.dtype) @ x)[2].operators
    product = next(o for o in operators if o.layer == "")
    assert (product.constant, [v.tolist() for v in product.labels]) == (6, [[0, 1, 2, 3, 4, 5]])


def experts(inner: int, transposed: bool) -> nn.Module:
    """Two experts, each row through one of them; gates and values of an expert in one matrix."""

    def forward(m: Any, x: Tensor) -> Tensor:
        def product(x: Tensor, weight: Tensor) -> Tensor:
            weight = weight.transpose(-2, -1) if transposed else weight
            return F.grouped_mm(x, weight, offs=torch.tensor([3, 8], dtype=torch.int32))

        gate, value = product(m.stem(x), m.up).chunk(2, -1)
        return m.head(product(F.silu(gate) * value, m.down))

    model = Lambda(forward, stem=nn.Linear(5, 16), head=nn.Linear(16, 2))
    up, down = torch.randn(2, 16, 2 * inner), torch.randn(2, inner, 16)
    model.up, model.down = (
        nn.Parameter(w.transpose(1, 2).contiguous() if transposed else w) for w in (up, down)
    )
    return model


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("inner", [24, 12])
def test_experts_lose_channels_in_blocks_of_16_bytes(inner: int, transposed: bool) -> None:
    torch.manual_seed(0)
    model, x = experts(inner, transposed), torch.randn(8, 5)
    structures = trace(model, x)
    unit = 8 if inner % 8 == 0 else 4
    found = sorted((g.size, g.width) for g in structures.groups)
    # the rows of an inner unit are those of its gates and of its values; an output is in a block
    # only where it lies side by side with the others
    assert found == sorted([(2, 8), (inner // unit, 2 * unit), (16, 1) if transposed else (2, 8)])
    removed = {g.start + 1 for g in structures.groups}
    for inputs in (x, torch.randn(8, 5)):
        expected = run(zeroed(model, structures, removed), inputs)
        assert error(expected, run(cut(model, structures, removed), inputs)) < 1e-6


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
def test_a_grouped_product_without_a_parameter_is_left_alone() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        matrices = m.b(x)[:, :64].reshape(2, -1, 16)
        offsets = torch.tensor([3, 8], dtype=torch.int32)
        return F.grouped_mm(m.a(x), matrices, offs=offsets)

    structures = trace(Lambda(forward, a=nn.Linear(5, 16), b=nn.Linear(5, 64)), torch.randn(8, 5))
    assert not structures.groups
    assert "grouped_mm" in structures.refusals[0].reason
