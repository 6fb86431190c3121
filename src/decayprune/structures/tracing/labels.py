"""Labels: which structure each element of an activation belongs to, and what equals what.

A label tensor (int64) has the shape of its activation; 0 says that the index never leaves. Labels
nearly always vary along one dimension only, so they are kept as *expanded* views: a dimension
along which nothing varies has stride 0 and costs nothing. :class:`Partition` hands out labels and
collects what the operators say about them ("these two leave together", "this one must stay"); it
answers only at the end, with one pass of connected components.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def varying(labels: Tensor) -> list[int]:
    """Dimensions along which an expanded label tensor can vary."""
    return [
        d
        for d, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True))
        if size > 1 and stride != 0
    ]


def core(labels: Tensor, dims: list[int] | None = None) -> Tensor:
    """The labels with every dimension outside ``dims`` (default: the varying ones) at size 1."""
    keep = set(varying(labels) if dims is None else dims)
    for d in range(labels.dim()):
        if d not in keep and labels.shape[d] > 1:
            labels = labels.narrow(d, 0, 1)
    return labels


def compress(labels: Tensor) -> Tensor:
    """The same labels with stride 0 along every dimension that does not really vary."""
    if labels.numel() == 0:
        return labels
    small = core(labels)
    for d in varying(small):
        first = small.narrow(d, 0, 1)
        if torch.equal(small, first.expand(small.shape)):
            small = first
    return small.expand(labels.shape)


def along(labels: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """Spread a vector of labels over ``shape``, varying along ``dim`` only."""
    view = [1] * len(shape)
    view[dim] = -1
    return labels.view(view).expand(shape)


def connected(size: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Connected components of a graph, numbered in the order of their smallest nodes.

    Every root hooks below a smaller one that it is linked to, then every path is jumped until it
    is flat; links whose ends have met are dropped, and so on until none is left. After a round
    only local minima are left as roots, so rounds are few. Pointers go down and never up: there
    is no cycle, the smallest node of a component ends as its root, and it does not matter which of
    several links to a root wins.

    Args:
        size: Number of nodes.
        left: One end of each link, shape ``(links,)``.
        right: The other end.

    Returns:
        The component of each node, shape ``(size,)``.

    Reference: Liu and Tarjan, Simple Concurrent Labeling Algorithms for Connected Components,
    arXiv 1812.06177.
    """
    root = np.arange(size)
    while left.size:
        root[np.maximum(left, right)] = np.minimum(left, right)
        while not np.array_equal(above := root[root], root):
            root = above
        left, right = root[left], root[right]
        apart = left != right
        left, right = left[apart], right[apart]
    is_root = root == np.arange(size)
    return np.asarray((is_root.cumsum() - 1)[root])


class Partition:
    """A union-find that is filled first and solved once."""

    def __init__(self) -> None:
        self.size = 1
        self._pairs: list[Tensor] = []
        self._fixed: list[tuple[Tensor, str]] = []
        self.blame: Callable[[], str] = str
        """What to add to each reason: where in the model's code it came up."""

    def fresh(self, count: int) -> Tensor:
        """New labels, each a structure of its own so far, shape ``(count,)``."""
        labels = torch.arange(self.size, self.size + count, device="cpu")
        self.size += count
        return labels

    def fix(self, labels: Tensor, reason: str, first: bool = False) -> None:
        """These labels never leave the model; the reason is told to the user.

        Where several things fix a structure the reason given first is told; ``first`` puts this
        one before all given so far.
        """
        labels = core(labels).reshape(-1)
        labels = labels[labels != 0]
        if labels.numel():
            where = 0 if first else len(self._fixed)
            self._fixed.insert(where, (labels, reason + self.blame()))

    def unify(self, a: Tensor, b: Tensor, reason: str) -> Tensor:
        """Say that ``a`` and ``b`` leave together, element by element.

        Args:
            a: Labels.
            b: Labels of the same shape.
            reason: Said of a label that meets a 0 (an index that never leaves).

        Returns:
            Labels standing for both.
        """
        # Along every other dimension both repeat themselves: comparing one index there is enough.
        dims = sorted(set(varying(a)) | set(varying(b)))
        left, right = core(a, dims), core(b, dims)
        differs = left != right
        if not differs.any():
            return a
        left_on, right_on = left != 0, right != 0
        both = differs & left_on & right_on
        if both.any():
            self._pairs.append(torch.stack([left[both], right[both]]))
        self.fix(left[left_on & ~right_on], reason)
        self.fix(right[right_on & ~left_on], reason)
        return torch.where(left_on, left, right).expand(a.shape)

    def collapse(self, labels: Tensor, dim: int, reason: str) -> Tensor:
        """The whole extent of ``dim`` is needed: what varies along it leaves together or stays.

        Where the labels vary along another dimension too (heads beside the width of a head), that
        dimension stays free. Where they do not, nothing can leave: they are fixed.
        """
        dims = varying(labels)
        if dim not in dims:
            return labels
        if dims == [dim]:
            self.fix(labels, reason)
            return torch.zeros((), dtype=torch.int64, device="cpu").expand(labels.shape)
        # Two dimensions vary: what is tied along one can still differ along the other, so that a
        # whole row may leave, and the first of each row stands for it.
        first = labels.narrow(dim, 0, 1).expand(labels.shape)
        self.unify(labels, first, reason)
        return compress(first)

    def components(self) -> np.ndarray:
        """The component of each label handed out so far, shape ``(size,)``."""
        pairs = (
            torch.cat(self._pairs, 1)
            if self._pairs
            else torch.zeros((2, 0), dtype=torch.int64, device="cpu")
        )
        return connected(self.size, *pairs.numpy())

    def solve(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Components, and why each fixed one is fixed.

        Returns:
            The component of each label; per component the position of its reason in the list of
            reasons, -1 where it is free; the reasons. The reason given first wins.
        """
        component = self.components()
        reasons = list(dict.fromkeys(reason for _, reason in self._fixed))
        why = np.full(int(component.max()) + 1, -1)
        for labels, reason in reversed(self._fixed):  # written over by those given earlier
            why[component[labels.numpy()]] = reasons.index(reason)
        why[component[0]] = -2  # the component of "no label"
        return component, why, reasons
