"""Sizes that modules remember: followed where name and layers leave no doubt, listed where not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decayprune.structures import trace
from reference.cut import cut


class Block(nn.Module):
    """Two convolutions; the width between them and the outer one are equal or not."""

    def __init__(self, outer: int, inner: int, **integers: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(outer, inner, 1), nn.Conv2d(inner, outer, 1)
        vars(self).update(integers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.b(F.relu(self.a(x))))


def net(block: nn.Module, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, dim, 1), block, nn.Conv2d(dim, 2, 1))


IMAGE = torch.randn(1, 3, 4, 4)


@pytest.mark.parametrize("name", ["dim", "channels", "in_channels", "out_channels", "num_features"])
def test_a_size_follows_the_only_width_that_it_can_mean(name: str) -> None:
    structures = trace(net(Block(8, 5, **{name: 8}), 8), IMAGE)
    small = cut(net(Block(8, 5, **{name: 8}), 8), structures, {0, 1, 2, 9})
    assert getattr(small[1], name) == small[1].a.in_channels == 5
    assert structures.doubtful == ()


@pytest.mark.parametrize(
    "name", ["patch_size", "kernel_size", "stride", "levels", "head_dim", "head", "lookahead"]
)
def test_other_integers_stay(name: str) -> None:
    structures = trace(net(Block(8, 5, **{name: 8}), 8), IMAGE)
    assert (name, "1") not in {(a, m) for m, a, *_ in structures.attributes}
    assert structures.doubtful == ()


def test_where_several_widths_fit_the_name_decides_or_nobody() -> None:
    integers = dict.fromkeys(("in_channels", "out_channels", "dim", "hidden", "groups"), 8)
    structures = trace(net(Block(8, 8, **integers), 8), IMAGE)
    own = {a: v for m, a, v, _ in structures.attributes if m == "1"}
    outer = next(v for m, a, v, _ in structures.attributes if (m, a) == ("0", "out_channels"))
    assert set(own) == {"in_channels", "out_channels", "dim"}
    assert all(torch.equal(v, outer) for v in own.values())
    assert [(m, a) for m, a, _ in structures.doubtful] == [("1", "hidden")]
    inner = next(v for m, a, v, _ in structures.attributes if (m, a) == ("1.a", "out_channels"))
    assert set(structures.doubtful[0][2].tolist()) == {*outer.tolist(), *inner.tolist()}


def test_what_forward_calculates_with_is_left_and_listed() -> None:
    class Scaled(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.dim**-0.5

    structures = trace(net(Scaled(8, 5, dim=8), 8), IMAGE)
    assert ("1", "dim") not in {(m, a) for m, a, *_ in structures.attributes}
    assert [(m, a) for m, a, _ in structures.doubtful] == [("1", "dim")]


def test_a_choice_between_attributes_is_not_changed() -> None:
    class Choosing(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.dim == self.dim_out else x

    structures = trace(net(Choosing(8, 5, dim=8, dim_out=8), 8), IMAGE)
    assert {a for _, a, _ in structures.doubtful} == {"dim", "dim_out"}


def test_heads_and_their_width_follow_the_attention_that_runs() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.all_head_size, self.head_dim = 4, 8, 2
            self.n_head, self.head, self.head_index = 4, 4, 4
            self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(1, 5, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    structures = trace(Attention(), torch.randn(1, 5, 6))
    small = cut(Attention(), structures, {1})
    assert (small.num_heads, small.all_head_size, small.head_dim) == (3, 6, 2)
    assert (small.n_head, small.head, small.head_index) == (3, 4, 4)  # the latter two: which one


def test_hidden_widths_are_those_that_the_module_divides() -> None:
    class Split(nn.Module):
        """As C2f of YOLO: the width of the halves, also that of every layer inside."""

        def __init__(self) -> None:
            super().__init__()
            self.c = 4
            self.a, self.b, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(12, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            p, q = F.relu(self.a(x)).chunk(2, 1)
            return F.relu(self.out(torch.cat([p, q, self.b(q)], 1)))

    structures = trace(net(Split(), 8), IMAGE)
    half = next(g for g in structures.groups if g.layer == "1.a")
    small = cut(net(Split(), 8), structures, {half.start})
    assert (small[1].c, small[1].a.out_channels) == (3, 6)
