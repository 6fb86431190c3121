"""Parts of a width: a number in the code holds it, an attribute or a share of it lets it go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import Lambda
from decayprune.structures import StructureMap, trace
from reference.cut import cut, error, run, zeroed
from ruled import groups, reason


def places(between) -> StructureMap:
    """Parts of 2, 3 and 5 of ten channels, read from attributes; checked by a cut."""
    model = Lambda(lambda m, x: m.b(between(m, m.a(x))), a=nn.Linear(4, 10), b=nn.Linear(10, 3))
    model.double()
    model.two, model.three, model.five, model.parts = 2, 3, 5, (2, 3, 5)
    x = torch.randn(2, 4, dtype=torch.float64)
    structures = trace(model, x)
    for group in structures.groups:
        gone = {group.start}
        found = run(cut(model, structures, gone), x)
        assert error(run(zeroed(model, structures, gone), x), found) < 1e-10
    return structures


@pytest.mark.parametrize(
    ("between", "count"),
    [
        (lambda m, x: torch.cat(x.split([m.two, m.three, m.five], 1), 1), 10),
        (lambda m, x: torch.cat(x.split(m.parts, 1), 1), 10),
        (lambda m, x: torch.cat(x.split([2, m.three, m.five], 1), 1), 8),
        (lambda m, x: torch.cat([x[:, : m.three], x[:, m.three :]], 1), 10),
        (lambda m, x: torch.cat([x[:, : -m.three], x[:, -m.three :]], 1), 10),
        (lambda m, x: torch.cat([x.narrow(1, 0, m.five), x[:, m.five :]], 1), 10),
        (
            lambda m, x: torch.cat([x[:, : m.two], x.narrow(1, m.two, m.three), x[:, m.five :]], 1),
            10,
        ),
    ],
)
def test_parts_that_attributes_name_follow(between, count: int) -> None:
    assert places(between).num_structures == count


def test_halves_by_hand_lose_the_same_offsets() -> None:
    assert groups(lambda x: torch.cat([x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]], 1)) == [
        (3, 2)
    ]
    assert groups(lambda x: F.relu(x[:, : x.size(1) // 3]), read=2) == [(2, 3)]
    assert reason(lambda x: torch.cat([x[:, :3], x[:, 3:]], 1)) == "sliced at fixed places"
    assert reason(lambda x: x[:, ::2], read=3) == "sliced at fixed places"
