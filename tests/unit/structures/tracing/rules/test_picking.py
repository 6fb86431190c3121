"""What picks by number: whole along what it picks from, free along everything else."""

from __future__ import annotations

import pytest
import torch

from ruled import groups, reason

INDEX = torch.tensor([[0, 2, 1], [1, 1, 3]])


def wide(x: torch.Tensor) -> torch.Tensor:
    return INDEX[:, :, None].expand(-1, -1, x.shape[2])


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.gather(1, wide(x)),
        lambda x: x.gather(1, INDEX[:, :, None].repeat(1, 1, x.shape[2])),
        lambda x: torch.take_along_dim(x, INDEX[:, :, None], 1),
        lambda x: x.gather(1, x.argmax(1, keepdim=True)),  # channel by channel
        lambda x: torch.zeros_like(x).scatter_add(1, wide(x), x),
        lambda x: x.scatter(1, wide(x), 0.0),
        lambda x: x.scatter_reduce(1, wide(x), x, "amax"),
        lambda x: x.sort(1)[0],
        lambda x: x.sort(1, descending=True)[0],
        lambda x: x.topk(2, 1)[0],
        lambda x: x.kthvalue(2, 1, keepdim=True)[0],
        lambda x: x.kthvalue(2, 1)[0],
        lambda x: x.cummax(1)[0],
        lambda x: torch.msort(x),
    ],
)
def test_channels_go_their_own_way(between) -> None:
    assert groups(between, shape=(2, 5, 4)) == [(6, 1)]


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (lambda x: x.gather(1, torch.tensor([[0, 1, 2, 3, 4, 5]] * 2)), "picked by numbers"),
        (lambda x: x.sort(1)[0], "sort over the width"),
        (
            lambda x: torch.zeros(2, 6).double().scatter_add(1, x.argsort(1), x),
            "argsort over the width",
        ),
        (
            lambda x: x.gather(0, torch.tensor([[0, 1, 1, 0, 1, 0]] * 2)),
            "meets an index of fixed width",
        ),
    ],
)
def test_numbers_along_the_width_fix_it(between, why: str) -> None:
    assert why in reason(between)
