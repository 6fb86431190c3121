"""Label tensors and the partition, against plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decayprune.structures.tracing.labels import (
    Partition,
    along,
    compress,
    connected,
    core,
    varying,
)
from reference import components as slow


def ends(links: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    both = np.array(links, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    size = draw(st.integers(1, 30))
    nodes = st.integers(0, size - 1)
    return size, draw(st.lists(st.tuples(nodes, nodes), max_size=40))


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_components_are_those_of_a_walk(graph: tuple[int, list[tuple[int, int]]]) -> None:
    size, links = graph
    assert connected(size, *ends(links)).tolist() == slow.connected(size, links)


@pytest.mark.parametrize("shape", ["chain", "shuffled chain", "star", "two stars", "comb"])
def test_components_of_shapes_that_are_hard_on_hooking(shape: str) -> None:
    n = 1000
    order = np.random.default_rng(0).permutation(n).tolist()
    links = {
        "chain": [(i, i + 1) for i in range(n - 1)],
        "shuffled chain": list(itertools.pairwise(order)),
        "star": [(n - 1, i) for i in range(n - 1)],
        "two stars": [(n - 1 - i % 2, i) for i in range(n - 2)],
        "comb": [(i, n - 1 - i) for i in range(n // 2)] + [(i, i + 1) for i in range(n // 2)],
    }[shape]
    found = connected(n, *ends(links))
    assert found.tolist() == slow.connected(n, links)
    assert found.max() == (shape == "two stars")


def test_compress_finds_what_really_varies() -> None:
    labels = torch.arange(1, 5).view(1, 4, 1).repeat(3, 1, 2)
    assert varying(labels) == [0, 1, 2]
    small = compress(labels)
    assert torch.equal(small, labels)
    assert varying(small) == [1]
    assert core(small).shape == (1, 4, 1)
    assert varying(compress(torch.full((3, 2), 7))) == []
    both = torch.arange(6).view(2, 3)
    assert varying(compress(both)) == [0, 1]


def test_along_spreads_a_vector_without_copying() -> None:
    vector = torch.tensor([1, 2, 3])
    spread = along(vector, 1, torch.Size([2, 3, 4]))
    assert torch.equal(spread, vector.view(1, 3, 1).expand(2, 3, 4))
    assert spread.data_ptr() == vector.data_ptr()


def test_unify_links_elements_and_fixes_what_meets_nothing() -> None:
    partition = Partition()
    a, b = partition.fresh(3), partition.fresh(3)
    joined = partition.unify(a, torch.tensor([b[0], 0, b[2]]), "met a 0")
    assert torch.equal(joined, a)
    component, why, reasons = partition.solve()
    assert component[a[0]] == component[b[0]]
    assert component[a[2]] == component[b[2]]
    assert len(set(component[[0, *a.tolist(), b[1].item()]])) == 5
    assert [reasons[i] if i >= 0 else None for i in why[component[a.numpy()]]] == [
        None,
        "met a 0",
        None,
    ]


def test_the_first_reason_wins_unless_one_is_put_first() -> None:
    partition = Partition()
    a = partition.fresh(2)
    partition.fix(a, "one")
    partition.fix(a, "two")
    partition.fix(a[:1], "zero", first=True)
    component, why, reasons = partition.solve()
    assert [reasons[i] for i in why[component[a.numpy()]]] == ["zero", "one"]


def test_collapse_keeps_the_other_dimension_free() -> None:
    partition = Partition()
    labels = partition.fresh(6).view(2, 3)
    heads = partition.collapse(labels, 1, "whole rows")
    assert varying(heads) == [0]
    component, why, _ = partition.solve()
    rows = component[labels.numpy()]
    assert len(set(rows[0])) == len(set(rows[1])) == 1
    assert rows[0, 0] != rows[1, 0]
    assert (why[rows] == -1).all()

    assert not partition.collapse(heads, 0, "all of it").any()
    _, why, reasons = partition.solve()
    assert [reasons[i] for i in why[rows[:, 0]]] == ["all of it"] * 2
