"""Models in another memory format, and the format that is chosen."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from decayprune.latency.memory_format import converted, formats, in_format
from living import Living

LAST = torch.channels_last
IMAGES = torch.randn(2, 3, 5, 6)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(48, 2))


def test_only_four_dimensions_have_a_format() -> None:
    assert converted(IMAGES, LAST).is_contiguous(memory_format=LAST)
    for other in (torch.randn(2, 3), torch.randn(1, 2, 3, 4, 5), "words", None):
        assert converted(other, LAST) is other
    assert formats((torch.zeros(1), {"a": IMAGES})) == [torch.contiguous_format, LAST]
    assert formats({"a": torch.zeros(1, 2)}) == [torch.contiguous_format]


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
