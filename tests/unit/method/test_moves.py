"""Moves become events when they are read."""

from __future__ import annotations

import torch
from torch import nn

from decayprune.method.lifecycle import Event
from decayprune.method.moves import Moves
from decayprune.structures import trace


def test_each_structure_has_an_event_in_order() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    structures = trace(model, torch.zeros(1, 3))
    ids = torch.tensor([6, 1])
    assert Moves(7, "decay", structures, ids).events() == [
        Event(7, "decay", 6, "2", 2),
        Event(7, "decay", 1, "0", 1),
    ]
    figures = torch.tensor([[0.5, 0.25, 2.0], [-1.0, 0.0, 3.0]])
    assert Moves(9, "prune", structures, ids, figures).events() == [
        Event(9, "prune", 6, "2", 2, 0.5, 0.25, 2.0),
        Event(9, "prune", 1, "0", 1, -1.0, 0.0, 3.0),
    ]
    assert Moves(9, "prune", structures, ids[:0]).events() == []
