"""Choices of order are noted once and made again: the values are the second run's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from decayprune.surgery.order import Order

FIRST = torch.tensor([[0.1, 0.5, 0.4, 0.9], [0.8, 0.2, 0.7, 0.3]])
NUDGED = FIRST.flip(1)  # every choice would be another one

CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "topk": lambda x: x.topk(2, dim=1)[0],
    "topk, by name": lambda x: torch.topk(x, k=2, dim=0)[0],
    "sort": lambda x: x.sort(1)[0],
    "sort, stable": lambda x: x.sort(dim=1, descending=True, stable=True)[0],
    "kthvalue": lambda x: x.kthvalue(2, 1)[0],
    "median": lambda x: x.median(1)[0],
    "max": lambda x: x.max(1)[0],
    "min, kept": lambda x: x.min(0, keepdim=True)[0],
    "cummax": lambda x: x.cummax(1)[0],
    "argsort": lambda x: x.gather(1, x.argsort(1)),
    "argmax": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "mask": lambda x: x[x > 0.45],
    "masked_select": lambda x: x.masked_select(x > 0.45),
    "nonzero": lambda x: x.flatten()[(x.flatten() > 0.45).nonzero().flatten()],
    "where": lambda x: x.flatten()[torch.where(x.flatten() > 0.45)[0]],
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_second_run_follows_the_first(name: str) -> None:
    order = Order()
    with order.noted():
        first = CHOICES[name](FIRST)
    with order.kept():
        again = CHOICES[name](NUDGED)
    assert order.followed == 1
    assert not torch.equal(again, CHOICES[name](NUDGED))
    # Where the first run took a value, the second one takes its own of the same place.
    for taken, then in zip(again.flatten(), first.flatten(), strict=True):
        (place,) = (then == FIRST).nonzero()
        assert taken == NUDGED[tuple(place)]


@pytest.mark.parametrize("name", CHOICES)
def test_the_same_values_give_the_same_result(name: str) -> None:
    order = Order()
    with order.noted():
        first = CHOICES[name](FIRST)
    with order.kept():
        assert torch.equal(CHOICES[name](FIRST), first)


def test_another_shape_or_another_call_is_not_followed() -> None:
    order = Order()
    with order.noted():
        FIRST.topk(2, dim=1)
        FIRST.argmax(1)
    with order.kept():
        values, _ = NUDGED[:, :3].topk(1, dim=1)
        assert torch.equal(values, NUDGED[:, :3].max(1, keepdim=True)[0])
        places = NUDGED.sort(1)[1]
    assert torch.equal(places, NUDGED.argsort(1))
    assert order.followed == 0


def test_suppressed_boxes_are_suppressed_again() -> None:
    from torchvision.ops import nms

    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]]).float()
    order = Order()
    with order.noted():
        first = nms(boxes, torch.tensor([0.9, 0.8, 0.1]), 0.5)
    with order.kept():
        again = nms(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
    assert first.tolist() == again.tolist() == [0, 2]
