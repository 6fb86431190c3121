"""Normalisers carry the labels of what they normalise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import Lambda
from decayprune.structures import StructureMap, trace


def keys(structures: StructureMap) -> dict[tuple[str, int], str]:
    return {(item.name, item.dim): item.role for item in structures.slices}


@pytest.mark.parametrize(
    ("affine", "carrier"), [(True, {"1.weight", "1.bias"}), (False, {"3.weight"})]
)
def test_behind_a_norm_its_affine_carries_or_who_reads_it(affine: bool, carrier: set[str]) -> None:
    norm = nn.BatchNorm1d(6, affine=affine)
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3))
    structures = trace(model, torch.randn(2, 4))
    assert {item.name for item in structures.slices if item.carrier.any()} == carrier
    assert keys(structures)["1.running_mean", 0] == "buffer"
    assert bool(structures.unpinned.all()) is not affine  # its running mean moves zeros


def test_a_group_norm_of_single_channels_mixes_none() -> None:
    def net(groups: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, 6, 1), nn.GroupNorm(groups, 6), nn.Conv1d(6, 2, 1))

    alone, mixing = (trace(net(groups), torch.randn(1, 2, 5)) for groups in (6, 2))
    assert [(g.size, g.width) for g in alone.groups] == [(6, 1)]
    assert [(g.size, g.width) for g in mixing.groups] == [(3, 2)]
    counted = [[a for m, a, *_ in s.attributes if m == "1"] for s in (alone, mixing)]
    assert counted == [["num_groups", "num_channels"], ["num_channels"]]


def test_a_layer_norm_over_places_too_cannot_be_counted() -> None:
    model = Lambda(
        lambda m, x: m.b(F.layer_norm(m.a(x), (3, 6))), a=nn.Linear(4, 6), b=nn.Linear(6, 2)
    )
    structures = trace(model, torch.randn(2, 3, 4))
    assert structures.refusals[0].reason.startswith("mixed by LayerNorm (")


def test_slopes_of_a_prelu_leave_with_their_channels() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3))
    assert keys(trace(model, torch.randn(2, 4)))["1.weight", 0] == "affine"
