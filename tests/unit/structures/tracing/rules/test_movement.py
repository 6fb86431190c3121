"""Data movement, executed on labels; places that are named by number cannot follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Lambda
from decayprune.structures import StructureMap, trace
from decayprune.structures.tracing import labels
from decayprune.structures.tracing.labels import connected
from decayprune.structures.tracing.rules.movement import _joined
from reference.cut import cut, error, run, zeroed
from ruled import groups, reason

INDEX = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda x: x.t().t(), [(6, 1)]),
        (lambda x: x.view(2, 2, -1).permute(0, 2, 1).flatten(1), [(3, 2)]),  # columns of 2 x 3
        (lambda x: x[::1, None].squeeze(1), [(6, 1)]),
        (lambda x: x[torch.tensor([1, 0])], [(6, 1)]),
        (lambda x: x.roll(1, 0).flip(0), [(6, 1)]),
        (lambda x: sum(x.chunk(2, 1)).repeat(1, 2), [(3, 2)]),
        (lambda x: torch.cat([x, -x], 0)[:2], [(6, 1)]),
        (lambda x: torch.stack([x, x + x]).sum(0), [(6, 1)]),
        (lambda x: x.index_select(0, INDEX)[:2], [(6, 1)]),
    ],
)
def test_labels_move_along(between, expected: list[tuple[int, int]]) -> None:
    assert groups(between) == expected


def test_padding_and_gates_change_the_width() -> None:
    assert groups(lambda x: F.pad(x, (1, 2)), read=9) == [(6, 1)]
    assert groups(lambda x: F.glu(x, 1), read=3) == [(3, 2)]
    assert groups(lambda x: torch.cat([x, x], 1), read=12) == [(6, 1)]


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (lambda x: x[:, [1, 0, 2, 3, 4, 5]], "sliced at fixed places"),
        (lambda x: x.narrow(1, 0, 6).index_select(1, torch.arange(6)), "sliced at fixed places"),
        (lambda x: x.flip(1), "flip along the width"),
        (lambda x: torch.cat(x.split([2, 4], 1), 1), "split at fixed places of the width"),
        (lambda x: torch.stack(x.unbind(1), 1), "unbind at fixed places of the width"),
        (lambda x: x.view(torch.float32).view(torch.float64), "reinterpreted as another dtype"),
        (lambda x: x.new_zeros(2, 6).copy_(x), "written in place into a tensor of fixed width"),
    ],
)
def test_what_names_places_of_a_width_fixes_it(between, why: str) -> None:
    assert reason(between) == why


def test_a_table_of_indices_is_flattened_as_swin_does_it() -> None:
    """timm's Swin: ``table[index.view(-1)].view(n, n, -1)``, with offsets first and heads last."""

    def forward(m, x):
        q, k, v = m.a(x).view(2, 5, 3, -1, 2).permute(2, 0, 3, 1, 4)
        bias = m.table[m.index.view(-1)].view(5, 5, -1).permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, bias[None])
        return m.b(y.transpose(1, 2).flatten(2))

    table = nn.Parameter(torch.randn(9, 4))
    model = Lambda(forward, a=nn.Linear(4, 24), b=nn.Linear(8, 3), table=table).double()
    model.register_buffer("index", torch.arange(5)[:, None] - torch.arange(5) + 4)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    structures = trace(model, x)
    assert [(g.layer, g.size, g.width) for g in structures.groups] == [("a", 4, 6)]
    found = run(cut(model, structures, {1, 2}), x)
    assert error(run(zeroed(model, structures, {1, 2}), x), found) < 1e-10


# ---- index_add -------------------------------------------------------------------------------


def added(dim: int, index: torch.Tensor, target, source) -> StructureMap:
    """``a`` and ``s`` meet in an index_add, ``b`` reads the sum."""
    model = Lambda(
        lambda m, x: m.b(target(m.a(x)).index_add(dim, index, source(m.s(x)))),
        a=nn.Linear(4, 6),
        s=nn.Linear(4, 6),
        b=nn.Linear(6, 3),
    )
    return trace(model, torch.randn(3, 4))


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def test_what_is_added_leaves_with_what_it_is_added_to() -> None:
    structures = added(0, INDEX, same, same)
    assert [(g.layers, g.size) for g in structures.groups] == [(("a", "s", "b"), 6)]
    assert not structures.unpinned.any()
    assert {item.name for item in structures.slices if item.carrier.any()} == {
        *("a.weight", "a.bias", "s.weight", "s.bias")
    }


def test_in_place_and_by_keywords_it_is_the_same() -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros_like(x)
        sums.index_add_(dim=0, index=torch.tensor([1, 1]), source=x)
        return torch.index_add(sums, 0, torch.tensor([0, 1]), x, alpha=2)

    assert groups(between) == [(6, 1)]


@pytest.mark.parametrize(
    ("dim", "index", "target", "source", "why"),
    [
        (1, torch.arange(6), same, same, "index_add along the width"),
        (0, INDEX, torch.ones_like, lambda s: torch.ones(3, 6), "index_add"),
        (
            0,
            INDEX,
            lambda a: torch.zeros(3, 6),
            same,
            "meets channels that stay in index_add",
        ),
        (0, INDEX[:0], same, lambda s: s[:0], "added to nothing by the example inputs"),
    ],
    ids=["along the width", "fixed source", "fixed target", "empty"],
)
def test_what_cannot_follow_stays(dim: int, index, target, source, why: str) -> None:
    structures = added(dim, index, target, source)
    assert structures.num_structures == 0
    assert any(why in item.reason for item in structures.refusals)


def test_a_width_that_is_told_that_of_another_leaves_with_it() -> None:
    """Heads are made of as many channels as the stream has (timm: twins, nest, pvt)."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.qkv, self.proj = 4, nn.Linear(12, 36), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
            return x + self.proj(y)

    parts = {"stem": nn.Linear(5, 12), "attention": Attention(), "head": nn.Linear(12, 2)}
    model = Lambda(lambda m, x: m.head(m.attention(m.stem(x))), **parts).double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    structures = trace(model, x)
    (group,) = structures.groups
    assert (group.layers, group.size) == (("stem", "attention.qkv", "attention.proj", "head"), 4)
    gone = {group.start + 1, group.start + 2}
    small = cut(model, structures, gone)
    assert (small.attention.num_heads, small.stem.out_features) == (2, 6)
    assert error(run(zeroed(model, structures, gone), x), run(small, x)) < 1e-12


def counted_links(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of links of every partition that is solved."""
    links = []

    def counted(size: int, left: Any, right: Any) -> Any:
        links.append(len(left))
        return connected(size, left, right)

    monkeypatch.setattr(labels, "connected", counted)
    return links


def test_what_is_written_by_an_index_costs_no_more_for_more_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchvision's detectors write the features of each level among those of a thousand boxes."""
    links = counted_links(monkeypatch)

    def written(m: Lambda, x: Tensor) -> Tensor:
        y, out = m.a(x), torch.zeros_like(m.s(x))
        out[torch.arange(len(x) // 2)] = y[: len(x) // 2]
        out[torch.arange(len(x) // 2, len(x))] = y[len(x) // 2 :]
        return m.b(out)

    for places in (8, 512):
        model = Lambda(written, a=nn.Linear(4, 6), s=nn.Linear(4, 6), b=nn.Linear(6, 2))
        structures = trace(model, torch.randn(places, 4))
        assert [(g.size, g.width) for g in structures.groups] == [(6, 1)]
    few, many = links[: len(links) // 2], links[len(links) // 2 :]
    assert few == many
    assert max(few) > 0


def test_tokens_beside_tokens_cost_no_more_for_more_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A video transformer has 25 thousand beside its class token."""
    links = counted_links(monkeypatch)

    def beside(m: Lambda, x: Tensor) -> Tensor:
        one = m.token(x.mean(1, keepdim=True))
        return m.b(torch.cat([one, m.a(x)], 1)[:, 1:])

    for tokens in (8, 512):
        model = Lambda(beside, a=nn.Linear(4, 6), token=nn.Linear(4, 6), b=nn.Linear(6, 2))
        structures = trace(model, torch.randn(2, tokens, 4))
        (group,) = structures.groups
        assert (sorted(group.layers), group.size) == (["a", "b", "token"], 6)
    few, many = links[: len(links) // 2], links[len(links) // 2 :]
    assert few == many
    assert max(few) > 0


def test_parts_that_are_one_channel_each_stay_as_wide_as_they_are() -> None:
    """Nothing varies inside a part, and the parts differ: the places are those of the result."""
    one, two = (torch.full((2, 1), n).expand(2, 3) for n in (5, 7))
    joined = _joined([one, two], 1)
    assert joined.shape == (2, 6)
    assert joined[0].tolist() == [5, 5, 5, 7, 7, 7]
