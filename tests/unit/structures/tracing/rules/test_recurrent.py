"""Hidden units of recurrent layers and cells: zeroed they are 0, cut they are gone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cases import Lambda
from decayprune.structures import StructureMap, trace
from reference.cut import cut, error, run, zeroed

KINDS = [nn.LSTM, nn.GRU, nn.RNN]
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


def random_units(structures: StructureMap) -> set[int]:
    draw, removed = random.Random(0), set[int]()
    for group in structures.groups:
        removed |= set(draw.sample(range(group.start, group.stop), group.size // 2))
    return removed


def check(model: nn.Module, inputs: Any, others: Any) -> StructureMap:
    """Cut half of everything: the outputs of the zeroed model, on other inputs, too."""
    structures = trace(model, inputs)
    removed = random_units(structures)
    small = cut(model, structures, removed)
    for roles in (("row", "affine", "column"), ("row", "affine")):
        for values in (inputs, others):
            expected = run(zeroed(model, structures, removed, roles), values)
            assert error(expected, run(small, values)) < 1e-12
    return structures


def reasons(model: nn.Module, inputs: Any) -> dict[str, str]:
    return {r.layer: r.reason for r in trace(model, inputs).refusals}


def around(rnn: nn.RNNBase, width: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, states = m.rnn(m.a(x))
        last = states[0] if isinstance(states, tuple) else states
        return m.head(F.relu(m.b(y))) + m.last(last[-1]).sum()

    last = nn.Linear(rnn.hidden_size, 1)
    parts = {"a": nn.Linear(3, 6), "rnn": rnn, "b": nn.Linear(width, 7), "head": nn.Linear(7, 2)}
    return Lambda(forward, **parts, last=last).double()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_units_of_all_layers_and_directions_leave_together(
    kind: type[nn.RNNBase], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = around(kind(6, 8, **options), 16 if "bidirectional" in options else 8)
    x, others = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    structures = check(model, x, others)
    found = [(g.layer, g.size, g.width) for g in structures.groups]
    assert found == [("a", 6, 1), ("rnn", 8, GATES[kind]), ("b", 7, 1)]
    assert not bool(structures.unpinned.any())
    macs = sum(
        o.constant * torch.tensor([len(labels) for labels in o.labels]).prod()
        for o in structures.operators
        if o.layer == "rnn"
    )
    assert macs == 15 * sum(p.numel() for n, p in model.rnn.named_parameters() if "weight" in n)


def test_a_relu_is_one_too() -> None:
    model = around(nn.RNN(6, 8, nonlinearity="relu"), 8)
    x, others = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    assert [g.layer for g in check(model, x, others).groups] == ["a", "rnn", "b"]


def test_sizes_follow() -> None:
    model = around(nn.GRU(6, 8), 8)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    structures = trace(model, x)
    small = cut(model, structures, random_units(structures))
    assert (small.rnn.input_size, small.rnn.hidden_size) == (3, 4)
    assert small.rnn.weight_ih_l0.shape == (12, 3)
    assert small.rnn.weight_hh_l0.shape == (12, 4)


CELLS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: type[nn.RNNCellBase]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        state = None
        for step in m.a(x):
            state = m.cell(step, state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    torch.manual_seed(0)
    model = Lambda(forward, a=nn.Linear(3, 6), cell=kind(6, 8), head=nn.Linear(8, 2)).double()
    x, others = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    found = [(g.layer, g.size) for g in check(model, x, others).groups]
    assert found == [("a", 6), ("cell", 8)]


def test_a_state_that_a_layer_makes_or_that_is_learned_is_cut_along() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        made, x = m.bridge(x.mean(0))[None], m.a(x)
        y, _ = m.first(x, made)
        y, _ = m.second(y, m.start.expand(-1, x.shape[1], -1).contiguous())
        return m.head(y)

    torch.manual_seed(0)
    model = Lambda(
        forward,
        a=nn.Linear(3, 6),
        bridge=nn.Linear(3, 8),
        first=nn.GRU(6, 8),
        second=nn.GRU(8, 4),
        head=nn.Linear(4, 2),
    )
    model.start = nn.Parameter(torch.randn(1, 1, 4))
    x, others = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    structures = check(model.double(), x, others)
    bridge, _, second = structures.groups
    assert set(bridge.layers) == {"first", "bridge", "second"}
    assert (bridge.size, second.size) == (8, 4)
    assert "" in second.layers  # the learned state


def test_a_state_of_a_fixed_width_is_refused() -> None:
    def forward(m: Any, x: Tensor, state: Tensor) -> Tensor:
        return m.head(m.rnn(x, state)[0])

    model = Lambda(forward, rnn=nn.GRU(3, 8), head=nn.Linear(8, 2))
    found = reasons(model, (torch.randn(5, 2, 3), torch.randn(1, 2, 8)))
    assert found["rnn"].startswith("starts from a state of a fixed width")

    def half(m: Any, x: Tensor) -> Tensor:
        return m.head(m.rnn(x, torch.sigmoid(m.bridge(x[:1])))[0])

    model = Lambda(half, rnn=nn.GRU(3, 8), bridge=nn.Linear(3, 8), head=nn.Linear(8, 2))
    found = reasons(model, torch.randn(5, 2, 3))
    assert found["rnn"].startswith("starts from a state where a unit of zeros is not zero")


def test_a_projected_state_is_refused_by_name() -> None:
    layer = nn.LSTM(3, 8, proj_size=4)
    model = Lambda(lambda m, x: m.head(m.rnn(x)[0]), rnn=layer, head=nn.Linear(4, 2))
    assert "without proj_size" in reasons(model, torch.randn(5, 2, 3))["rnn"]


def test_computed_weights_are_refused_with_the_way_out() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.GRU(3, 8), "weight_hh_l0")
    model = Lambda(lambda m, x: m.head(m.rnn(x)[0]), rnn=layer, head=nn.Linear(8, 2))
    structures = trace(model, torch.randn(5, 2, 3))
    assert not structures.groups


@pytest.mark.parametrize("sort", [True, False])
def test_packed_sequences(sort: bool) -> None:
    def forward(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(m.a(x), lengths, batch_first=True, enforce_sorted=sort)
        y, (last, _) = m.rnn(packed)
        y, _ = pad_packed_sequence(y, batch_first=True)
        return m.head(y).sum(1) + m.last(last[-1])

    torch.manual_seed(0)
    model = Lambda(
        forward,
        a=nn.Linear(3, 6),
        rnn=nn.LSTM(6, 8, batch_first=True),
        head=nn.Linear(8, 2, bias=False),
        last=nn.Linear(8, 2),
    ).double()
    lengths = torch.tensor([5, 3, 1] if sort else [3, 5, 1])
    x, others = torch.randn(2, 3, 5, 3, dtype=torch.float64)
    structures = check(model, (x, lengths), (others, lengths))
    assert [(g.layer, g.size) for g in structures.groups] == [("a", 6), ("rnn", 8)]
