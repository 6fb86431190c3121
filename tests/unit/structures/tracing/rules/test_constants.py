"""Tensors that a model makes: an extent that is an attribute follows the width that it meets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from decayprune.structures import trace
from reference.cut import cut, error, run, zeroed
from ruled import groups, reason


class Cell(nn.Module):
    """A recurrent cell by hand, with a first state of its own."""

    def __init__(self, start) -> None:
        super().__init__()
        self.hidden, self.start = 6, start
        self.i, self.r, self.o = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.start(self, x)
        for t in range(x.shape[1]):
            state = torch.tanh(self.i(x[:, t]) + self.r(state))
        return self.o(state)


@pytest.mark.parametrize(
    "start",
    [
        lambda m, x: torch.zeros(len(x), m.hidden, dtype=x.dtype),
        lambda m, x: torch.zeros((len(x), m.hidden), dtype=x.dtype),
        lambda m, x: torch.ones(size=(len(x), m.hidden), dtype=x.dtype),
        lambda m, x: x.new_full((len(x), m.hidden), 0.5),
        lambda m, x: x.new_zeros(m.hidden),
    ],
)
def test_a_first_state_follows_the_hidden_width(start) -> None:
    model, x = Cell(start).double(), torch.randn(2, 4, 5, dtype=torch.float64)
    structures = trace(model, x)
    assert [(g.layer, g.size) for g in structures.groups] == [("i", 6)]
    small = cut(model, structures, {1, 4})
    assert small.hidden == 4
    assert error(run(zeroed(model, structures, {1, 4}), x), run(small, x)) < 1e-10


def test_an_extent_that_was_read_off_an_activation_is_its_width() -> None:
    assert groups(lambda x: x + x.new_ones(x.shape)) == [(6, 1)]
    assert groups(lambda x: torch.cat([x, torch.zeros(2, x.shape[1]).double()], 1), read=12) == [
        (6, 1)
    ]


def test_a_number_holds_the_width() -> None:
    assert reason(lambda x: x + torch.zeros(2, 6).double()).startswith(
        "meets a tensor of shape 2x6"
    )
