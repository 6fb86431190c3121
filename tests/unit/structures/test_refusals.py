"""Widths that stay are told by reason: the heaviest first, each once."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.structures.refusals import alike, by_weight
from decayprune.structures.structure_map import Refusal

REFUSALS = (
    Refusal("head", 10, "the model's output"),
    Refusal("a", 8, "frozen (`a.weight` has requires_grad=False)"),
    Refusal("b", 16, "frozen (`b.weight` has requires_grad=False)"),
    Refusal("", 12, "the model's output"),
)


def test_particulars_do_not_part_what_has_one_reason() -> None:
    assert [[refusal.width for refusal in kind] for kind in alike(REFUSALS)] == [[10, 12], [8, 16]]


def test_the_heaviest_reason_comes_first_under_its_widest_layer() -> None:
    assert by_weight(REFUSALS) == [
        "`b` (16 wide) and 1 more: frozen (`b.weight` has requires_grad=False)",
        "the model itself (12 wide) and 1 more: the model's output",
    ]
    assert by_weight(()) == []


def test_a_frozen_backbone_is_one_line_and_named_when_a_budget_is_out_of_reach() -> None:
    widths = (4, 12, 16, 8)
    backbone = nn.Sequential(
        *(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths))
    )
    model = nn.Sequential(backbone, nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    backbone.requires_grad_(False)
    inputs = torch.zeros(1, 4)
    assert str(dp.inspect(model, inputs)).count("frozen (") == 1
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    named = r"free what stays whole \(the widest: `0\.1\.0` \(16 wide\) and 2 more: frozen \("
    with pytest.raises(ValueError, match=named):
        dp.DecayPruner(
            model, optimizer, inputs, budget=dp.Budget(macs=0.5), schedule=dp.Schedule.for_run(10)
        )
