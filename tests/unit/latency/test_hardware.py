"""What suits a processor, against costs that are counted by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from decayprune.cost import CostModel
from decayprune.latency.hardware import Hardware, Suit, haste, known, unit
from decayprune.structures.tracing.trace import trace
from loops import OPTIMIZERS, net, pruner_for, same, train

SIMD = Hardware(block=16, macs_per_value=100)


class Funnel(nn.Module):
    """Many positions and few channels first, few positions and many channels later."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 32, 3, padding=1)
        self.late = nn.Conv2d(32, 64, 3, stride=4, padding=1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.late(self.early(x).relu()).relu().mean((2, 3)))


IMAGES = torch.zeros(2, 3, 16, 16)


def costs(model: nn.Module, inputs: Tensor) -> tuple[Any, CostModel]:
    structures = trace(model, inputs)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return structures, CostModel(structures, shapes)


def test_values_are_what_weighted_layers_hand_on() -> None:
    _, cost = costs(Funnel(), IMAGES)
    assert cost.values(cost.sizes) == 32 * 256 + 64 * 16 + 10
    assert cost.values(torch.tensor([7, 5])) == 7 * 256 + 5 * 16 + 10


@pytest.mark.parametrize(
    ("width", "expected"),
    [(7, 1), (8, 1), (16, 2), (24, 2), (32, 4), (64, 8), (127, 8), (128, 16), (255, 16), (256, 32)],
)
def test_narrow_widths_keep_eight_steps_and_wide_ones_take_two_blocks(
    width: int, expected: int
) -> None:
    assert unit(SIMD, width) == expected
    assert width < 8 or width // expected >= 8


def test_where_only_macs_take_time_all_groups_are_alike() -> None:
    _, cost = costs(Funnel(), IMAGES)
    counting = Hardware(block=1, macs_per_value=0)
    assert [haste(counting, cost, group) for group in (0, 1)] == pytest.approx([1, 1])


def test_many_values_for_few_macs_speak_for_cutting_there() -> None:
    _, cost = costs(Funnel(), IMAGES)
    early = 256 * 27 * 32  # MACs that half of the first group halves, and those of the second layer
    late = 16 * 9 * 32 * 64
    whole = early + late + 640
    values = 32 * 256 + 64 * 16 + 10
    time = ((early + late) / 2 + 100 * 16 * 256) / (whole + 100 * values)
    assert haste(SIMD, cost, 0) == pytest.approx((time / ((early + late) / 2 / whole)) ** 0.25)
    assert haste(SIMD, cost, 0) > haste(SIMD, cost, 1)


def test_the_targets_have_names() -> None:
    assert known("cuda").block == 8
    assert known("cpu").block in (4, 8, 16)
    assert known("onnxruntime").block == known("cpu").block
    with pytest.raises(ValueError, match=r"'onnxruntime', or a dp\.Hardware.*found 'tpu'"):
        known("tpu")
    with pytest.raises(ValueError, match="block from 1"):
        Hardware(block=0, macs_per_value=1)


def test_a_suit_is_saved_as_numbers_and_checked_when_it_is_read() -> None:
    structures, cost = costs(Funnel(), IMAGES)
    suit = Suit.of(SIMD, structures, cost)
    assert suit.round_to == (4, 8)
    assert Suit.from_state_dict(suit.state_dict(), 2) == suit
    good = suit.state_dict()
    for damaged in (
        None,
        {},
        {**good, "round_to": [8]},
        {**good, "round_to": [8, 0]},
        {**good, "haste": [1.0, float("nan")]},
        {**good, "haste": [1.0, -1.0]},
        {**good, "haste": ["much", 1.0]},
    ):
        with pytest.raises(ValueError, match="are damaged in this pruner state"):
            Suit.from_state_dict(damaged, 2)


class TestPruner:
    """``round_to="auto"``."""

    def pruned(self, **options: Any) -> dp.DecayPruner:
        torch.manual_seed(0)
        model = Funnel()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        pruner = dp.DecayPruner(
            model,
            optimizer,
            IMAGES,
            budget=dp.Budget(macs=0.6),
            schedule=dp.Schedule(stop=0, decay_steps=1),
            rectify=None,
            **options,
        )
        model(IMAGES).sum().backward()
        optimizer.step()
        pruner.step()
        assert pruner.finished
        assert pruner.remaining()["macs"] <= 0.6
        return pruner

    def test_it_is_the_default_and_widths_are_multiples(self) -> None:
        for pruner in (self.pruned(target=SIMD), self.pruned()):
            assert pruner._settings()["round_to"] == "auto"
        first, second = self.pruned(target=SIMD)._session.kept().tolist()
        assert (first % 4, second % 8) == (0, 0)

    def test_time_is_cut_where_it_falls(self) -> None:
        moving = Hardware(block=1, macs_per_value=10_000)
        counting = Hardware(block=1, macs_per_value=0)
        by_time = self.pruned(target=moving)._session.kept().tolist()
        by_macs = self.pruned(target=counting)._session.kept().tolist()
        plain = self.pruned(round_to=2)._session.kept().tolist()
        assert by_macs == plain
        assert by_time[0] < by_macs[0]
        assert by_time[1] > by_macs[1]

    def test_multiples_give_way_to_the_budget(self) -> None:
        model = net()
        pruner = pruner_for(
            model,
            OPTIMIZERS["SGD"](model.parameters()),
            budget=dp.Budget(macs=0.05),
            floor=0.0,
            round_to="auto",
            target=SIMD,
        )
        assert pruner is not None
        with pytest.raises(ValueError, match=r"macs=0\.05 cannot be reached"):
            pruner_for(
                other := net(),
                OPTIMIZERS["SGD"](other.parameters()),
                budget=dp.Budget(macs=0.05),
                floor=0.0,
                round_to=8,
            )

    def test_a_resumed_run_goes_on_with_the_widths_of_its_first_machine(self) -> None:
        model = net()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        pruner = pruner_for(model, optimizer, round_to="auto", target=SIMD)
        saved = copy.deepcopy([x.state_dict() for x in (model, optimizer, pruner)])
        train(model, optimizer, 22, pruner)

        other = net(7)
        again = OPTIMIZERS["SGD"](other.parameters())
        elsewhere = Hardware(block=1, macs_per_value=0)
        resumed = pruner_for(other, again, round_to="auto", target=elsewhere)
        for one, state in zip((other, again, resumed), saved, strict=True):
            one.load_state_dict(state)
        train(other, again, 22, resumed)
        assert same(model, other)
        assert resumed.events == pruner.events

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"round_to": "fast"}, "'auto' for what suits the machine, or None; found 'fast'"),
            ({"round_to": True}, "found True"),
            ({"round_to": 8, "target": "cuda"}, "round_to is 8: leave one of them out"),
            ({"target": "tpu"}, "found 'tpu'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            self.pruned(**options)
