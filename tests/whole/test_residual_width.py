"""Transformers lose heads and inner widths first; the width that all blocks share goes last."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from loops import pruner_for
from residual_nets import Block


def left_of_the_stream(macs: float, **options: Any) -> int:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), Block(8, 32, torch.relu), Block(8, 32, torch.relu), nn.Linear(8, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, schedule = torch.randn(4, 6), dp.Schedule(stop=4, decay_steps=4)
    pruner = pruner_for(
        model,
        optimizer,
        inputs=inputs,
        budget=dp.Budget(macs=macs),
        schedule=schedule,
        round_to=None,
        **options,
    )
    for _ in range(8):
        model(inputs).square().sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    report = pruner.compact()
    assert report.macs_after <= macs * report.macs_before
    return model[0].out_features


def test_by_default_it_stays() -> None:
    assert left_of_the_stream(0.5) == 8


def test_unless_the_budget_cannot_be_met_without_it() -> None:
    assert left_of_the_stream(0.1) < 8


def test_asked_for_it_is_pruned_like_others() -> None:
    assert left_of_the_stream(0.5, residual_width=True) < 8


def test_forbidden_it_is_a_refusal() -> None:
    assert left_of_the_stream(0.5, residual_width=False) == 8
    with pytest.raises(ValueError, match=r"budget .* cannot be reached"):
        left_of_the_stream(0.1, residual_width=False)


class Placed(nn.Module):
    """As speech encoders: frozen sinusoids are added to the stream."""

    def __init__(self, looked_up: bool) -> None:
        super().__init__()
        self.places = nn.Embedding(5, 8) if looked_up else nn.ParameterList([torch.randn(5, 8)])
        self.places.requires_grad_(False)
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks, self.norm = (
            nn.Sequential(Block(8, 32, torch.relu), Block(8, 32, torch.relu)),
            nn.LayerNorm(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        looked_up = isinstance(self.places, nn.Embedding)
        table = self.places(torch.arange(5)) if looked_up else self.places[0]
        return self.head(self.norm(self.blocks(self.stem(x) + table)))


@pytest.mark.parametrize("held", [True, False], ids=["in the optimizer", "not there"])
@pytest.mark.parametrize("looked_up", [True, False], ids=["looked up", "as it is"])
def test_a_frozen_table_of_positions_leaves_with_the_stream(looked_up: bool, held: bool) -> None:
    torch.manual_seed(0)
    model = Placed(looked_up).double()
    x, others = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    trained = [p for p in model.parameters() if held or p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    pruner = pruner_for(
        model,
        optimizer,
        inputs=x,
        budget=dp.Budget(macs=0.4),
        schedule=dp.Schedule(stop=4, decay_steps=4),
        residual_width=True,
        round_to=None,
    )
    for _ in range(8):
        model(x).square().sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    expected = model.eval()(others)
    pruner.compact()
    assert model.stem.out_features < 8
    assert next(model.places.parameters()).shape == (5, model.stem.out_features)
    torch.testing.assert_close(model(others), expected, rtol=0, atol=1e-12)


def test_a_frozen_table_of_words_keeps_its_width() -> None:
    class Words(Placed):
        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.norm(self.blocks(self.places(words))))

    found = dp.inspect(Words(looked_up=True), torch.randint(0, 5, (2, 7)))
    frozen = "frozen (`places.weight` has requires_grad=False)"
    assert {r.layer for r in found.refusals if r.reason.startswith(frozen)} >= {"places"}


def test_frozen_positions_keep_their_width_where_all_that_makes_it_is_frozen() -> None:
    model = Placed(looked_up=True)
    for part in (model.stem, model.blocks):
        part.requires_grad_(False)
    found = dp.inspect(model, torch.randn(4, 5, 6))
    assert all(r.reason.startswith(("frozen", "the model's output")) for r in found.refusals)
    assert not found.groups


RELEASING = dp.Rectify(rule="thresholds", t_rate=-1.0, t_len=-9.0, warm_up=0.4, cool_down=9)


def placed(seed: int = 0, **options: Any) -> tuple[Placed, Any, dp.DecayPruner]:
    torch.manual_seed(seed)
    model = Placed(looked_up=True).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = pruner_for(
        model,
        optimizer,
        inputs=torch.randn(4, 5, 6, dtype=torch.float64),
        budget=dp.Budget(macs=0.4),
        schedule=dp.Schedule(stop=6, rounds=2, decay_steps=5),
        residual_width=True,
        round_to=None,
        **options,
    )
    return model, optimizer, pruner


def train(model: nn.Module, optimizer: Any, pruner: dp.DecayPruner, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(
            4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(pruner.steps)
        )
        model(x).square().sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()


def test_frozen_positions_get_their_values_back_when_they_are_released() -> None:
    model, optimizer, pruner = placed(rectify=RELEASING)
    table = model.places.weight.clone()
    shrunk = False
    for _ in range(12):
        train(model, optimizer, pruner, 1)
        stream = next(s for s in pruner.structures.slices if s.name == "places.weight").structure
        phase = torch.cat([pruner.lifecycle.phase, torch.zeros(1)])[stream]
        same = (model.places.weight == table).all(0)
        assert torch.equal(same, phase == 0)  # neither decaying nor pruned
        shrunk |= bool((phase == 1).any())
    assert shrunk
    assert any(event.kind == "release" for event in pruner.events)


def test_a_pruner_that_is_closed_gives_them_back_and_can_cut_all_the_same() -> None:
    model, optimizer, pruner = placed(rectify=None)
    table = model.places.weight.clone()
    train(model, optimizer, pruner, 4)
    assert not torch.equal(model.places.weight, table)
    pruner.close()
    assert torch.equal(model.places.weight, table)
    model, optimizer, pruner = placed(rectify=None)
    train(model, optimizer, pruner, 14)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    expected = model(x)
    pruner.close()
    assert torch.equal(model.places.weight, table)
    pruner.compact()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


def test_what_frozen_positions_were_is_saved_and_resumed() -> None:
    straight, optimizer, pruner = placed(rectify=RELEASING)
    table = straight.places.weight.clone()
    train(straight, optimizer, pruner, 12)
    released = next(event.step for event in pruner.events if event.kind == "release")
    first, optimizer, pruner = placed(rectify=RELEASING)
    train(first, optimizer, pruner, released - 1)
    saved = [part.state_dict() for part in (first, optimizer, pruner)]
    assert torch.equal(saved[2]["frozen"]["places.weight"], table)
    second = placed(1, rectify=RELEASING)
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(copy.deepcopy(state))
    train(*second, 12 - (released - 1))
    assert all(map(torch.equal, second[0].state_dict().values(), straight.state_dict().values()))
    older = {name: value for name, value in saved[2].items() if name != "frozen"}
    second[2].load_state_dict(older)  # of a version that kept none
    saved[2]["frozen"] = {"places.weight": table[:, :3]}
    with pytest.raises(ValueError, match=r"places.weight \(5, 3\).* this model are: .*\(5, 8\)"):
        second[2].load_state_dict(saved[2])
