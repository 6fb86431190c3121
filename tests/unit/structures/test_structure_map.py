"""The map of structures: numbering, fingerprints, and taking groups out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cases import CASES
from decayprune.structures import FIXED, StructureMap, trace


@pytest.fixture
def structures() -> StructureMap:
    """Groups of six (stem and b) and four (a)."""
    return trace(*CASES["residual"]())


def test_structures_know_their_group_and_layer(structures: StructureMap) -> None:
    assert structures.group_of.tolist() == [0] * 6 + [1] * 4
    assert structures.layer_of(5) == "stem.0"
    assert structures.layer_of(6) == "a.0"
    assert structures.groups[1].size == 4


def test_a_slice_has_the_width_before_any_cut(structures: StructureMap) -> None:
    widths = {(item.name, item.dim): item.width for item in structures.slices}
    assert widths["a.0.weight", 0] == 4
    assert widths["a.0.weight", 1] == 6


def test_fingerprints_differ_where_slices_do(structures: StructureMap) -> None:
    first, *rest = structures.slices
    for other in (
        replace(first, name="other"),
        replace(first, dim=1),
        replace(first, role="column"),
        replace(first, structure=first.structure.flip(0)),
    ):
        assert replace(structures, slices=(other, *rest)).fingerprint != structures.fingerprint
    same = replace(first, structure=first.structure.clone())
    assert replace(structures, slices=(same, *rest)).fingerprint == structures.fingerprint


def test_without_a_group_the_others_are_renumbered(structures: StructureMap) -> None:
    found = structures.without({0: "because"})
    assert found.num_structures == found.index.numel() == found.unpinned.numel() == 4
    assert [(g.layer, g.start, g.stop) for g in found.groups] == [("a.0", 0, 4)]
    assert (found.refusals[-1].layer, found.refusals[-1].width) == ("stem.0", 6)
    assert found.refusals[-1].reason == "because"
    slices = {(item.name, item.dim): item for item in found.slices}
    assert ("stem.0.weight", 0) not in slices
    assert slices["a.0.weight", 0].structure.tolist() == [0, 1, 2, 3]
    assert ("a.0.weight", 1) not in slices
    assert all(not item.carrier[item.structure == FIXED].any() for item in found.slices)
    for before, after in zip(structures.operators, found.operators, strict=True):
        for old, new in zip(before.labels, after.labels, strict=True):
            assert torch.equal(new, torch.where(old >= 6, old - 6, FIXED))


def test_without_nothing_is_the_same(structures: StructureMap) -> None:
    assert structures.without({}).fingerprint == structures.fingerprint


@pytest.mark.parametrize("refused", [{}, {1: "because"}], ids=["all", "without a group"])
def test_equal_vectors_are_held_once(structures: StructureMap, refused: dict[int, str]) -> None:
    """Each width is told of weight, normaliser, consumers, operators and attributes."""
    found = structures.without(refused)
    said = [
        *(item.structure for item in found.slices),
        *(labels for operator in found.operators for labels in operator.labels),
        *(labels for _, _, labels, _ in found.attributes),
    ]
    held = {vector.data_ptr() for vector in said}
    different = {(*vector.shape, *vector.tolist()) for vector in said}
    assert len(said) > 3 * len(different)
    assert len(held) == len(different)
