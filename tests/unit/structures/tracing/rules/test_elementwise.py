"""What lies between the layers: who keeps labels, zeros and scales."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import Lambda
from decayprune.structures import trace
from ruled import groups, reason, traced


def carriers(between) -> set[str]:
    structures = traced(between)[2]
    return {item.name for item in structures.slices if item.carrier.any()}


@pytest.mark.parametrize(
    ("between", "unpinned", "carrier"),
    [
        (torch.relu, False, {"a.weight", "a.bias"}),
        (lambda x: x.clamp(-1, 1), False, {"a.weight", "a.bias"}),
        (lambda x: x.clamp(0.5, 1), True, {"b.weight"}),  # 0 becomes 0.5
        (torch.sigmoid, True, {"b.weight"}),
        (lambda x: x + 1, True, {"a.weight", "a.bias"}),
        (lambda x: x**2, False, {"a.weight", "a.bias"}),
        (lambda x: (x + 2) ** -1, True, {"a.weight", "a.bias"}),
        (lambda x: 2 / (x.abs() + 3), True, {"b.weight"}),
        (lambda x: torch.zeros_like(x) + x, False, {"a.weight", "a.bias", "b.weight"}),
    ],
)
def test_zeros_and_scales(between, unpinned: bool, carrier: set[str]) -> None:
    structures = traced(between)[2]
    assert structures.num_structures == 6
    assert structures.unpinned.tolist() == [unpinned] * 6
    assert carriers(between) == carrier


def test_a_factor_of_two_inputs_is_scaled_by_the_last() -> None:
    model = Lambda(
        lambda m, x: m.b(m.gate(x).sigmoid() * m.a(x)),
        a=nn.Linear(4, 6),
        gate=nn.Linear(4, 6),
        b=nn.Linear(6, 3),
    )
    structures = trace(model, torch.randn(2, 4))
    assert structures.num_structures == 6
    found = {item.name for item in structures.slices if item.carrier.any()}
    assert found == {"a.weight", "a.bias"}


def test_a_raw_parameter_takes_the_labels_that_it_meets() -> None:
    model = Lambda(
        lambda m, x: m.b(m.a(x) * m.gamma),
        a=nn.Linear(4, 6),
        gamma=nn.Parameter(torch.ones(6)),
        b=nn.Linear(6, 3),
    )
    roles = {item.name: item.role for item in trace(model, torch.randn(2, 4)).slices}
    assert roles["gamma"] == "affine"


def test_a_buffer_is_no_zero_that_a_norm_could_count() -> None:
    model = Lambda(
        lambda m, x: m.b(m.norm(m.a(x) + m.sines)),
        a=nn.Linear(4, 6),
        norm=nn.LayerNorm(6),
        b=nn.Linear(6, 3),
    )
    model.register_buffer("sines", torch.randn(5, 6))
    structures = trace(model, torch.randn(2, 5, 4))
    assert structures.refusals[0].layer == "a"
    assert structures.refusals[0].reason.startswith(
        "channels of zeros get the buffer `sines` before `norm` takes their mean; without that"
    )


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (lambda x: x + torch.ones(6), "meets a tensor of shape 6 that keeps its size in add"),
        (
            lambda x: (x[:, :, None] + x[:, None]).sum(1),
            "meets another width along another dimension in add",
        ),
        (lambda x: x.softmax(-1), "softmax over the channels"),
        (lambda x: x / x.mean(1, keepdim=True), "mean over the channels"),
        (lambda x: x / x.exp().sum(1, keepdim=True), "sum over the channels"),
        (lambda x: x * x.amax(), "amax over the channels"),
        (lambda x: x.cumsum(1), "cumsum over the channels"),
        (lambda x: F.avg_pool1d(x, 1), "avg_pool1d over the channels"),
    ],
)
def test_what_reads_all_of_a_width_fixes_it(between, why: str) -> None:
    assert reason(between) == why


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x + torch.ones(2, 1),
        lambda x: x * x.mean(0),
        lambda x: x.softmax(0),
        lambda x: torch.maximum(x, -x),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: x.std(0, keepdim=True) * x,
        lambda x: F.interpolate(x[..., None], scale_factor=2).mean(-1),
    ],
)
def test_what_treats_channels_one_by_one_leaves_them_free(between) -> None:
    assert groups(between) == [(6, 1)]


# ---- buffers ---------------------------------------------------------------------------------


def test_a_buffer_along_the_width_is_cut_along_and_never_scaled() -> None:
    model = Lambda(
        lambda m, x: m.b(m.a(x) * m.shift + m.shift.view(8)), a=nn.Linear(4, 8), b=nn.Linear(8, 3)
    )
    model.register_buffer("shift", torch.randn(1, 8))
    found = trace(model, torch.randn(2, 4))
    assert [(g.size, g.width) for g in found.groups] == [(8, 1)]
    own = [item for item in found.slices if item.name == "shift"]
    assert [(item.dim, item.role) for item in own] == [(1, "buffer")]
    assert not own[0].carrier.any()
    assert found.unpinned.all()  # a channel of zeros is shifted


@pytest.mark.parametrize(
    "used", [lambda x: x, lambda x: x[None], lambda x: x.reshape(1, 1, 1, 2), lambda x: x.cos()]
)
def test_a_buffer_along_the_channels_of_a_head_does_not_tie_heads(used) -> None:
    def forward(m, x):
        q, k, v = m.a(x).view(2, 5, 3, -1, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q * used(m.turn), k + used(m.turn), v)
        return m.b(y.transpose(1, 2).flatten(2))

    model = Lambda(forward, a=nn.Linear(4, 24), b=nn.Linear(8, 3))
    model.register_buffer("turn", torch.randn(2))
    found = trace(model, torch.randn(2, 5, 4))
    assert [(g.size, g.width) for g in found.groups] == [(4, 6)]
    assert "turn" not in {item.name for item in found.slices}
