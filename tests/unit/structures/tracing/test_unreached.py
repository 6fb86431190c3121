"""Widths that a part nobody reached may be coupled with are left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp
from decayprune.structures import trace


class Router(nn.Module):
    """Takes one of two branches, by its input."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = (
            nn.Linear(8, 32),
            nn.Linear(32, 24),
            other,
            nn.Linear(24, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.o(F.relu(self.b(h)) if x.mean() > 0 else F.relu(self.c(h)))


BRANCHES = {
    "layer": lambda: nn.Linear(32, 24),
    "expert": lambda: nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 24)),
    "norm": lambda: nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 24)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_the_other_branch_of_a_router_works_after_any_cut(name: str) -> None:
    model, x = Router(BRANCHES[name]()), torch.rand(2, 8)
    found = dp.inspect(model, x)
    reasons = {r.layer: r.reason for r in found.refusals}
    assert not found.groups
    for layer in ("a", "b"):
        assert "`c` may read or feed it, and is not reached" in reasons[layer]
    both = dp.inspect(model, -x)  # the other way round the first branch is the unreached one
    assert all("`b` may" in r.reason for r in both.refusals if r.layer == "a")


def test_widths_of_another_size_are_free() -> None:
    class Labelled(nn.Module):
        """A head that is used with labels only."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Linear(8, 32), nn.Linear(32, 16), nn.Linear(16, 4)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            h = F.relu(self.b(F.relu(self.a(x))))
            return self.o(h) if labels is None else F.cross_entropy(self.head(h), labels)

    groups = [group.layer for group in trace(Labelled(), torch.randn(2, 8)).groups]
    assert groups == ["a"]


def test_convolutions_are_measured_by_their_channels() -> None:
    class Branched(nn.Module):
        def __init__(self, spare: nn.Module) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 2, 1)
            self.spare = spare

        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.relu(self.b(F.relu(self.a(x)))))

    def free(spare: nn.Module) -> list[str]:
        return [group.layer for group in trace(Branched(spare), torch.randn(1, 3, 4, 4)).groups]

    assert free(nn.Identity()) == ["a", "b"]
    assert free(nn.Conv2d(8, 5, 3)) == ["b"]
    assert free(nn.Conv2d(12, 12, 3, groups=12)) == ["a"]
    assert free(nn.ConvTranspose2d(12, 8, 2)) == []
    assert free(nn.ConvTranspose2d(6, 5, 2)) == ["a", "b"]
    assert free(nn.Embedding(8, 12)) == ["a"]
