"""Attention in shifted windows: the stand-in computes what torchvision does, and can shrink."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

import decayprune as dp
from cases import CASES
from decayprune.structures.exact.swap import become, stand_in
from decayprune.structures.exact.window_attention import HeadwiseWindowAttention
from reference.cut import run

KINDS = [  # torchvision's own version 2 fails without a bias
    (ShiftedWindowAttention, True),
    (ShiftedWindowAttention, False),
    (ShiftedWindowAttentionV2, True),
]


@pytest.mark.parametrize(("kind", "bias"), KINDS)
@pytest.mark.parametrize("shift", [[0, 0], [2, 2], [0, 2], [1, 0]])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (4, 12), (4, 4)])
def test_it_computes_what_it_stands_in_for(
    kind: type[nn.Module], bias: bool, shift: list[int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    module = kind(24, [4, 4], shift, 3, qkv_bias=bias, attention_dropout=0.2, dropout=0.1).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    for training in (False, True):
        module.train(training)
        torch.manual_seed(1)
        expected = module(x)
        back = become(module)
        assert isinstance(module, HeadwiseWindowAttention)
        torch.manual_seed(1)
        torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
        back()
        assert type(module) is kind
        assert not hasattr(module, "head_dim")


class Own(ShiftedWindowAttention):
    """Somebody's own variant may compute anything."""


def test_only_torchvisions_own_is_known() -> None:
    assert stand_in(Own(8, [2, 2], [0, 0], 2)) is None


@pytest.mark.parametrize(
    "ignored", [["stem"], ["a.qkv", "b.qkv"], []], ids=["heads", "stream", "both"]
)
def test_heads_and_stream_leave_one_without_the_other(ignored: list[str], tmp_path: Path) -> None:
    model, inputs = CASES["shifted_windows"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(structures=0.6),
        schedule=dp.Schedule(stop=1, decay_steps=2),
        scope="local",
        ignored_layers=ignored,
        round_to=None,
    )
    while not pruner.finished:
        model(inputs).square().sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.compact().max_rel_error < 1e-12
    assert (model.a.num_heads < 4) == (model.b.num_heads < 2) == ("a.qkv" not in ignored)
    assert (model.a.qkv.in_features < 12) == ("stem" not in ignored)
    assert isinstance(model.a, HeadwiseWindowAttention)
    model(inputs).sum().backward()
    optimizer.step()
    dp.save(tmp_path, model)
    loaded = dp.load(tmp_path, CASES["shifted_windows"]()[0])
    assert torch.equal(run(loaded, inputs)[0], run(model, inputs)[0])
    assert torch.equal(run(copy.deepcopy(loaded), inputs)[0], run(model, inputs)[0])
