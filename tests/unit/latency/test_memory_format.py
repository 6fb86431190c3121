"""Models in another memory format, and the format that is chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from decayprune.latency.memory_format import converted, fastest, has_images, in_format
from living import Living

LAST = torch.channels_last
IMAGES = torch.randn(2, 3, 5, 6)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(48, 2))


def test_only_four_dimensions_have_a_format() -> None:
    assert converted(IMAGES, LAST).is_contiguous(memory_format=LAST)
    for other in (torch.randn(2, 3), torch.randn(1, 2, 3, 4, 5), "words", None):
        assert converted(other, LAST) is other
    assert has_images((torch.zeros(1), {"a": IMAGES}))
    assert not has_images({"a": torch.zeros(1, 2)})


def test_a_twin_in_the_format_computes_the_same_and_the_model_stays_as_it_is() -> None:
    model = net()
    living = Living(model)
    other, run = in_format(model, IMAGES, LAST)
    assert other[0].weight.is_contiguous(memory_format=LAST)
    assert isinstance(run, partial)
    assert run.args[0].is_contiguous(memory_format=LAST)
    assert torch.allclose(run(), model(IMAGES), atol=1e-6)
    assert model[0].weight.is_contiguous()
    living.check()


@pytest.mark.parametrize(("ratio", "expected"), [(0.8, LAST), (1.0, torch.contiguous_format)])
def test_the_faster_format_is_taken(ratio: float, expected: torch.memory_format) -> None:
    asked: list[Any] = []

    def compare(one: Callable[[], object], other: Callable[[], object]) -> float:
        asked.extend([one, other])
        assert not one.func.training
        return ratio

    model = net().train()
    other, run, found = fastest(model, IMAGES, compare)
    assert found is expected
    assert run.func is other
    assert other[0].weight.is_contiguous(memory_format=expected)
    assert asked[0].args[0].is_contiguous(memory_format=LAST)
    assert model.training


def test_where_there_are_no_images_nothing_is_timed() -> None:
    _, _, found = fastest(nn.Linear(3, 2), torch.zeros(1, 3), lambda one, other: 1 / 0)
    assert found is torch.contiguous_format
