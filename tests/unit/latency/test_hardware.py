"""What suits a processor, against costs that are counted by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from decayprune.cost import CostModel
from decayprune.latency.hardware import Hardware, checked_units, known, unit, units
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
    [(7, 1), (16, 1), (31, 1), (32, 2), (64, 4), (127, 4), (128, 8), (256, 16), (512, 32)],
)
def test_narrow_widths_keep_sixteen_steps_and_wide_ones_take_two_blocks(
    width: int, expected: int
) -> None:
    assert unit(SIMD, width) == expected
    assert width < 16 or width // expected >= 16


def test_the_targets_have_names() -> None:
    assert known("cuda").block == 8
    assert known("cpu").block in (4, 8, 16)
    assert known("onnxruntime").block == known("cpu").block
    with pytest.raises(ValueError, match=r"'compiled', or a dp\.Hardware.*found 'tpu'"):
        known("tpu")
    with pytest.raises(ValueError, match="block from 1"):
        Hardware(block=0, macs_per_value=1)


def test_multiples_are_checked_when_they_are_read() -> None:
    structures, _ = costs(Funnel(), IMAGES)
    found = units(SIMD, structures)
    assert found == (2, 4)
    assert checked_units([*found], 2) == found
    for damaged in (None, {}, [8], [8, 0], [8, 4.0], [8, True], [8, "4"]):
        with pytest.raises(ValueError, match="are damaged in this pruner state"):
            checked_units(damaged, 2)


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

    def test_widths_are_multiples_and_any_by_default(self) -> None:
        for pruner in (self.pruned(round_to="auto", target=SIMD), self.pruned(round_to="auto")):
            assert pruner._settings()["round_to"] == "auto"
        first, second = self.pruned(round_to="auto", target=SIMD)._session.kept().tolist()
        assert (first % 2, second % 4) == (0, 0)
        assert self.pruned(target=SIMD)._session.kept().tolist() == [first, second]
        assert self.pruned()._settings()["round_to"] is None

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
            (
                {"round_to": 8, "target": "cuda"},
                "round_to is 8 and no latency is bounded: leave one of them out",
            ),
            ({"round_to": "auto", "target": "tpu"}, "found 'tpu'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            self.pruned(**options)
