"""Normalisers that count what left, against the plain ones over activations padded by zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import (
    ChannelsFirst,
    GammaLayerNorm,
    OnePlusNorm,
    PlainRMSNorm,
    ScaledConv,
    StandardisedConv,
    _randomise,
)
from decayprune.structures.exact.norms import counting_layer_norm
from decayprune.structures.exact.swap import become, counted_width


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


def cut_norms() -> nn.Module:
    norms = nn.Sequential(nn.LayerNorm(6), nn.RMSNorm(6), nn.GroupNorm(2, 6))
    for norm in norms:
        shrink(norm, [1, 2, 4, 5])
    return norms


def test_exporters_find_normalisers_they_know() -> None:
    program = torch.export.export(cut_norms().eval(), (torch.randn(2, 4, 4),), strict=False)
    core = program.run_decompositions()
    names = [str(node.target) for node in core.graph.nodes if node.op == "call_function"]
    assert names.count("aten.native_layer_norm.default") == 1
    assert names.count("aten.native_group_norm.default") == 1
    assert not [name for name in names if "var_mean" in name]  # not in Core ATen


@pytest.mark.parametrize("size", [(2, 4), (2, 4, 3), (2, 4, 3, 5), (2, 4, 1, 2, 3)])
def test_a_group_norm_takes_any_number_of_dimensions(size: tuple[int, ...]) -> None:
    norm = randomised(nn.GroupNorm(2, 6))
    x = torch.randn(size, dtype=torch.float64)
    kept = torch.tensor([1, 2, 4, 5])
    full = torch.zeros(2, 6, *size[2:], dtype=torch.float64).index_copy(1, kept, x)
    expected = norm(full).index_select(1, kept)
    shrink(norm, kept.tolist())
    torch.testing.assert_close(norm(x), expected)


SCRIPTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm(6), (2, 6)),
    "bare": (lambda: nn.LayerNorm(6, elementwise_affine=False), (2, 6)),
    "channels first": (lambda: ChannelsFirst(6), (2, 6, 3, 3)),
    "other names": (lambda: GammaLayerNorm(6), (2, 6, 3, 3)),
    "group": (lambda: nn.GroupNorm(2, 6), (2, 6, 3)),
    "rms": (lambda: nn.RMSNorm(6), (2, 6)),
    "one plus": (lambda: OnePlusNorm(6), (2, 6)),
    "gains": (lambda: ScaledConv(6, 4, 3), (2, 6, 5, 5)),
    "no gains": (lambda: StandardisedConv(6, 4, 3), (2, 6, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
@pytest.mark.parametrize("name", SCRIPTED)
def test_stand_ins_can_be_scripted(name: str) -> None:
    torch.manual_seed(0)
    make, shape = SCRIPTED[name]
    module, x = make().double(), torch.randn(*shape, dtype=torch.float64)
    become(module)
    module.counted += 2  # as if channels had left
    scripted = torch.jit.script(nn.Sequential(module, nn.ReLU()))
    torch.testing.assert_close(scripted(x), module(x).relu(), rtol=0, atol=1e-14)
    shared = {p.data_ptr() for p in module.parameters()}
    assert {p.data_ptr() for p in scripted.parameters()} == shared
