"""Where the elements of a parameter lie after it was moved."""

from __future__ import annotations

import torch

from decayprune.structures.tracing.views import View


def axis(view, dim: int):
    found = view.axis(dim)
    return None if found is None else (found[0], found[1].tolist())


def test_a_parameter_as_it_is() -> None:
    view = View(torch.zeros(2, 3))
    assert axis(view, 0) == (0, [0, 1])
    assert axis(view, -1) == (1, [0, 1, 2])
    assert view.whole(0)
    assert view.whole(1)


def test_movement_is_executed_on_the_places() -> None:
    (turned,) = View(torch.zeros(2, 3)).moved(lambda p: p.T)
    assert axis(turned, 0) == (1, [0, 1, 2])
    (part,) = View(torch.zeros(2, 3)).moved(lambda p: p[:, 1:])
    assert axis(part, 1) == (1, [1, 2])
    assert not part.whole(1)
    assert part.whole(0)
    (one,) = View(torch.zeros(2, 3, 4)).moved(lambda p: p[1])
    assert axis(one, 0) == (1, [0, 1, 2])
    assert not one.whole(0)
    first, second = View(torch.zeros(4, 3)).moved(lambda p: p.chunk(2))
    assert axis(first, 0) == (0, [0, 1])
    assert axis(second, 0) == (0, [2, 3])


def test_dimensions_laid_together_or_apart() -> None:
    (flat,) = View(torch.zeros(2, 3)).moved(torch.flatten)
    assert axis(flat, 0) == (0, [0, 0, 0, 1, 1, 1])
    (apart,) = View(torch.zeros(4, 3)).moved(lambda p: p.view(2, 2, 3))
    assert apart.axis(0) is None  # rows lie along two dimensions
    assert axis(apart, 2) == (1, [0, 1, 2])
    assert not apart.whole(0)


def test_dimensions_of_size_one_are_counted() -> None:
    view = View(torch.zeros(1, 3))
    assert axis(view, 0) == (0, [0])
    (more,) = view.moved(lambda p: p[None])
    assert more.axis(0) is None  # nobody can say which of the two it is
    assert axis(more, 2) == (1, [0, 1, 2])
