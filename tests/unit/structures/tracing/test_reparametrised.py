"""Weights that are computed from parameters: which parameters, and which index of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm

from cases import ScaledConv, StandardisedConv
from decayprune.structures import trace
from decayprune.structures.tracing.reparametrised import Parts, computed, layer_of, parts_of


def old_weight_norm(layer: nn.Module, **options: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and everywhere in the field
        return nn.utils.weight_norm(layer, **options)


WEIGHT_NORMS = [old_weight_norm, parametrizations.weight_norm]
SPECTRAL_NORMS = [old_spectral_norm, parametrizations.spectral_norm]


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_a_weight_norm_has_lengths_and_a_whole(norm: Callable[..., nn.Module]) -> None:
    for dim in (0, 1):
        parts = parts_of(norm(nn.Conv1d(4, 6, 3), dim=dim))
        assert parts is not None
        assert parts.dim == dim
        assert parts.whole.shape == (6, 4, 3)
        assert parts.lengths is not None
        assert parts.lengths.numel() == (6, 4)[dim]
        assert len(parts.tensors()) == 2


@pytest.mark.parametrize("norm", SPECTRAL_NORMS)
def test_a_spectral_norm_has_two_vectors(norm: Callable[..., nn.Module]) -> None:
    parts = parts_of(norm(nn.Conv1d(4, 6, 3)))
    assert parts is not None
    assert parts.left is not None
    assert parts.right is not None
    assert (parts.left.numel(), parts.right.numel()) == (6, 12)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_labels_along_the_singular_vectors_are_those_of_the_flattened_weight(dim: int) -> None:
    whole = torch.zeros(3, 4, 2)
    left, right = torch.zeros(whole.shape[dim]), torch.zeros(24 // whole.shape[dim])
    parts = Parts(whole, dim, None, left, right)
    for along in range(3):
        labels = torch.arange(1, whole.shape[along] + 1)
        ((vector, found),) = parts.along(along, labels)
        view = [1, 1, 1]
        view[along] = -1
        every = labels.view(view).expand(whole.shape).movedim(dim, 0).flatten(1)
        assert vector is (left if along == dim else right)
        assert torch.equal(found, every[:, 0] if along == dim else every[0])


def test_a_standardised_weight_is_scaled_by_its_gains_alone() -> None:
    with_gains, bare = parts_of(ScaledConv(4, 6, 3)), parts_of(StandardisedConv(4, 6, 3))
    assert with_gains is not None
    assert with_gains.lengths is not None
    assert bare is not None
    for parts, scaled in ((with_gains, True), (bare, False)):
        assert parts.centred
        assert (parts.scales(0), parts.scales(1), parts.scales(-1)) == (scaled, False, False)
        assert (parts.moves_zeros(0), parts.moves_zeros(1)) == (not scaled, True)
    plain = parts_of(parametrizations.weight_norm(nn.Conv1d(4, 6, 3)))
    assert plain is not None
    assert plain.scales(1)
    assert not plain.moves_zeros(1)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_what_is_not_known_is_told_with_the_way_out() -> None:
    plain, odd, chain = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
    parametrize.register_parametrization(odd, "weight", Doubled())
    for _ in range(2):
        parametrizations.weight_norm(chain)
    assert [parts_of(layer) for layer in (plain, odd, chain)] == [None, None, None]
    assert "computed by Doubled" in computed(odd)
    assert "WeightNorm and WeightNorm" in computed(chain)
    assert "remove_parametrizations(layer, 'weight')" in computed(odd)
    assert "a layer that holds the computed weight" in computed(plain)


def test_a_part_belongs_to_its_layer() -> None:
    assert layer_of("a.b.weight") == "a.b"
    assert layer_of("a.b.parametrizations.weight.original0") == "a.b"
    assert layer_of("parametrizations.weight.0._u") == ""
    assert layer_of("weight") == ""


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_lengths_carry_and_the_direction_is_never_scaled(norm: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(norm(nn.Linear(3, 6)), nn.ReLU(), norm(nn.Linear(6, 5)), nn.ReLU())
    model.append(nn.Linear(5, 2))
    structures = trace(model, torch.randn(2, 3))
    assert [(g.layer, g.size) for g in structures.groups] == [("0", 6), ("2", 5)]
    of = {(s.name, s.dim): s for s in structures.slices}
    (lengths,) = (
        s
        for (name, _), s in of.items()
        if name.endswith(("0.weight_g", "original0")) and name.startswith("0.")
    )
    wholes = [s for s in structures.slices if s.name.endswith(("weight_v", "original1"))]
    assert lengths.role == "row"
    assert bool(lengths.carrier.all())
    assert {(s.dim, s.role) for s in wholes} == {(0, "buffer"), (1, "column")}
    for item in wholes:
        assert bool(item.carrier.all()) == (item.role == "column")  # its share of the norms
