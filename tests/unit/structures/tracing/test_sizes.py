"""Integers that know their origin: what is read as a width follows, what equals it does not."""

from __future__ import annotations

import copy
import math
import sys
import types
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Lambda
from decayprune.structures import StructureMap, trace
from decayprune.structures.tracing.labels import Partition, along
from decayprune.structures.tracing.sizes import Origin, Readings, Size, einops_uncached
from reference.cut import cut, error, run, zeroed


class Holder(nn.Module):
    """A module of nobody's library."""


def noted(**integers) -> tuple[nn.Module, Readings]:
    model, readings = Holder(), Readings()
    for name, value in integers.items():
        setattr(model, name, value)
    readings.note(model)
    return model, readings


# ---- the integer ------------------------------------------------------------------------------


def test_a_size_is_an_integer_that_keeps_its_trail_through_exact_arithmetic() -> None:
    model, readings = noted(width=12)
    of = Origin("", "width")
    for value, factor in (
        (model.width, Fraction(1)),
        (model.width * 2, Fraction(2)),
        (3 * model.width // 4, Fraction(3, 4)),
        (-model.width, Fraction(-1)),
    ):
        assert type(value) is Size
        assert value == 12 * factor
        assert (value.of, value.factor) == (of, factor)
    assert not readings.found
    readings.calculated.clear()
    lost = [model.width // 5, model.width + 1, model.width * model.width, int(model.width)]
    assert [type(value) for value in lost] == [int] * 4
    assert lost == [2, 13, 144, 12]


def test_a_size_behaves_as_any_integer() -> None:
    model, _ = noted(width=12)
    assert {12: "found"}[model.width] == "found"
    assert (model.width != 12, model.width == 11, model.width in (3, 12)) == (False, False, True)
    assert (list(range(model.width))[-1], f"{model.width:03d}") == (11, "012")
    assert type(copy.deepcopy(model).width) is int
    assert torch.zeros(model.width, 2).view(2, model.width).shape == (2, 12)


def test_modules_integers_tuples_and_lists_are_noted_and_nothing_else() -> None:
    model, _ = noted(a=4, one=1, flag=True, pair=(2, 3), parts=[4, 5], mixed=(1, None), text="4")
    model.layer = nn.Conv2d(3, 4, 3)
    readings = Readings()
    readings.note(model)  # a second time: what is noted stays
    assert [type(v) for v in (model.a, *model.pair, *model.parts)] == [Size] * 5
    assert [type(v) for v in (model.one, model.flag, model.text)] == [int, bool, str]
    assert type(model.mixed[0]) is type(model.layer.kernel_size[0]) is int
    assert type(model.layer.out_channels) is Size
    assert model.pair[1].of == Origin("", "pair.1")


def test_an_attribute_shared_out_by_another_is_calculated_with() -> None:
    readings, module = Readings(), nn.Module()
    module.width, module.paths = 64, 2
    readings.note(module)
    assert module.width // module.paths == 32
    assert readings.calculated == {Origin("", "width")}
    assert module.width // 2 == 32
    assert not readings.is_attribute(module.width // module.paths)


def test_what_is_calculated_with_an_attribute_is_known() -> None:
    model, readings = noted(a=4, b=4, c=4, d=4, e=4, f=4)
    assert (model.a**-0.5, math.sqrt(model.b), model.c > 1, 2 / model.d) == (0.5, 2, True, 0.5)
    assert model.e * 2 == 8  # compared with a number
    assert readings.calculated == {Origin("", name) for name in "abcde"}


# ---- readings ---------------------------------------------------------------------------------


def test_an_attribute_is_read_where_it_is_the_extent_of_labels() -> None:
    model, readings = noted(width=4, other=3)
    labels = along(Partition().fresh(4), 1, torch.Size([2, 4]))
    assert readings.read(model.width, labels, 1)
    assert not readings.read(4, labels, 1)
    assert not readings.read(model.other, labels, 1)
    assert not Readings().read(model.width, labels, 1)  # a cache held it, of another model
    (found,) = readings.found
    assert (found.origin, found.factor, found.labels.tolist()) == (
        Origin("", "width"),
        Fraction(1),
        [[1], [2], [3], [4]],
    )


def test_an_extent_that_equals_an_attribute_counts_it() -> None:
    model, readings = noted(half=2, width=4)
    labels = along(Partition().fresh(4), 1, torch.Size([2, 4]))
    shape = readings.extents(torch.Size([2, 4]), labels)
    assert isinstance(shape, torch.Size)
    assert [type(n) for n in shape] == [int, Size]
    assert shape[1] == model.half * 2
    assert (model.width != shape[1]) is False
    assert shape[1] == shape[1]
    assert [(r.origin.attribute, r.factor) for r in readings.found] == [("half", 2), ("width", 1)]


def test_widths_that_one_attribute_counts_are_tied() -> None:
    model, readings = noted(width=2)
    partition = Partition()
    a, b = partition.fresh(2), partition.fresh(2)
    for labels in (a, b):
        readings.read(model.width, labels, 0)
    readings.tie(partition)
    component, _, _ = partition.solve()
    assert component[a.numpy()].tolist() == component[b.numpy()].tolist()


def test_einops_computes_shapes_anew(monkeypatch) -> None:
    with einops_uncached():  # not there
        pass
    module = types.ModuleType("einops.einops")

    def cached() -> str:
        return "cached"

    cached.__wrapped__ = lambda: "anew"
    module._reconstruct_from_shape = cached
    monkeypatch.setitem(sys.modules, "einops.einops", module)
    with einops_uncached():
        assert module._reconstruct_from_shape() == "anew"
    assert module._reconstruct_from_shape() == "cached"


# ---- in models --------------------------------------------------------------------------------


class Attention(nn.Module):
    """Four heads of two channels, and integers that are 4 by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q_stride, self.levels, self.scale_dim = 4, 4, 4, 8
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 8, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = q.unflatten(2, (self.q_stride, -1)).amax(2)
        for _ in range(self.levels):
            q = q + 0
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale_dim**-0.5)
        return self.out(y.transpose(1, 2).flatten(2))


def attributes(structures: StructureMap) -> set[str]:
    return {f"{m}.{a}".strip(".") for m, a, *_ in structures.attributes}


def test_an_integer_that_equals_the_number_of_heads_is_no_head_count() -> None:
    model, x = Attention().double(), torch.randn(2, 8, 6, dtype=torch.float64)
    structures = trace(model, x)
    assert [(g.size, g.width) for g in structures.groups] == [(4, 6)]
    small = cut(model, structures, {1, 2})
    assert (small.heads, small.q_stride, small.levels, small.scale_dim) == (2, 4, 4, 8)
    assert error(run(zeroed(model, structures, {1, 2}), x), run(small, x)) < 1e-10
    assert type(model.heads) is int


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda m, x: x.view(-1, m.n, 1).flatten(1), 6),
        (lambda m, x: x.view(-1, 3, m.n // 3).flatten(1), 2),
        (lambda m, x: x.unflatten(1, (m.n, 1)).expand(-1, m.n, 2).mean(2), 6),
        (lambda m, x: x.reshape(shape=(-1, m.n)), 6),
        (lambda m, x: torch.cat(x.split(m.half, 1), 1), 3),
        (lambda m, x: torch.cat([x[:, : m.half], x[:, m.half :]], 1), 6),
    ],
)
def test_sizes_that_are_read_follow(between, expected: int) -> None:
    model = Lambda(lambda m, x: m.b(between(m, m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    model.double().n, model.half = 6, 3
    x = torch.randn(2, 4, dtype=torch.float64)
    structures = trace(model, x)
    assert structures.num_structures == expected
    gone = {structures.num_structures - 1}
    assert error(run(zeroed(model, structures, gone), x), run(cut(model, structures, gone), x)) < (
        1e-10
    )


def test_a_model_that_wants_plain_integers_gets_them() -> None:
    def forward(m, x):
        if type(m.n) is not int:
            raise TypeError(m.n)
        return m.b(m.a(x).relu())

    model = Lambda(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    model.n = 6
    assert trace(model, torch.randn(2, 4)).num_structures == 6
