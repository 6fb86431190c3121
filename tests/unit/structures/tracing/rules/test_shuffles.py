"""Movement with a pattern of its own: several channels make up one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Lambda
from decayprune.structures import trace


def labels(between, width: int, read: int) -> list[int]:
    """Structure of each channel of ``a``, which ``b`` reads after the operator."""
    model = Lambda(
        lambda m, x: m.b(between(m.a(x))), a=nn.Conv2d(2, width, 1), b=nn.Conv2d(read, 2, 1)
    )
    structures = trace(model, torch.randn(1, 2, 4, 4))
    return next(s for s in structures.slices if s.name == "a.weight").structure.tolist()


def test_pixel_shuffle_ties_what_makes_up_one_channel() -> None:
    assert labels(lambda x: F.pixel_shuffle(x, 2), 8, 2) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_channel_shuffle_ties_the_offsets_of_its_groups() -> None:
    def between(x: Tensor) -> Tensor:
        return F.channel_shuffle(x, 2)

    assert labels(between, 6, 6) == [0, 1, 2, 0, 1, 2]


def test_unfolded_and_folded_again_every_channel_is_by_itself() -> None:
    def between(x: Tensor) -> Tensor:
        return F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1)

    assert labels(between, 3, 3) == [0, 1, 2]


def test_windows_of_a_tensor_are_of_its_channels() -> None:
    assert labels(lambda x: x.unfold(2, 2, 2).sum(-1), 3, 3) == [0, 1, 2]


def test_one_fixed_channel_fixes_those_that_make_up_one_with_it() -> None:
    def between(x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 1, 0)), 2)  # one channel of zeros before

    assert labels(between, 7, 2) == [-1, -1, -1, 0, 0, 0, 0]
