"""A refusal points at the module and the line of the model's code that are to blame."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from decayprune.structures import trace
from decayprune.structures.tracing.blame import running_line


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * torch.rand(6))  # this line


def line() -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(n for n, text in enumerate(file, 1) if text.rstrip().endswith("# this line"))


def test_the_line_and_the_module_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Block(), nn.Linear(4, 2))
    found = {r.layer: r.reason for r in trace(model, torch.randn(2, 3)).refusals}
    reason, _, where = found["1.a"].partition(" (")
    assert reason == "meets a tensor of shape 6 that keeps its size in mul"
    assert re.fullmatch(rf"in `1`, \S*test_blame.py:{line()}\)", where)
    assert found["2"] == "the model's output"


def test_where_only_layers_of_torch_run_the_module_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2))
    (reason, _) = (r.reason for r in trace(model, torch.randn(2, 3)).refusals)
    assert reason == "softmax over the channels (in `1`)"


def test_nothing_outside_the_run_is_blamed() -> None:
    assert "test_blame.py" in running_line("nobody")
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    reasons = [r.reason for r in trace(model, torch.randn(2, 3)).refusals]
    assert reasons == ["frozen (`0.weight` has requires_grad=False)", "the model's output"]
