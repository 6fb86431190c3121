"""TorchScript inside a model is an operator that nobody knows, and has a name."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import decayprune as dp
from decayprune.structures import trace
from decayprune.structures.tracing.scripts import is_script, scripts_shown
from decayprune.structures.tracing.tape import Tape

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in the field

    @torch.jit.script
    def swish(x):
        return x * x.sigmoid()


def scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 12), scripted(nn.Sequential(nn.Linear(12, 12), nn.ReLU()))
        self.c, self.d, self.o = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(swish(self.d(torch.relu(self.c(self.b(torch.relu(self.a(x))))))))


def test_what_enters_is_refused_by_name_and_the_rest_is_pruned() -> None:
    structures = trace(Net(), torch.randn(2, 3))
    assert [(g.layer, g.size) for g in structures.groups] == [("c", 16)]
    reasons = {refusal.layer: refusal.reason for refusal in structures.refusals}
    for layer in ("a", "b.0"):
        assert reasons[layer].startswith("unknown operator `b` (a module in TorchScript)")
    assert reasons["d"].startswith("unknown operator `swish` (a function in TorchScript)")


def test_a_whole_script_is_refused_in_the_same_words() -> None:
    structures = trace(scripted(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))), torch.randn(2, 3))
    assert not structures.groups
    assert {r.layer: r.width for r in structures.refusals} == {"0": 4, "1": 2}
    assert all("a module in TorchScript" in r.reason for r in structures.refusals)


def test_a_model_with_a_script_inside_is_cut_trained_and_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = dp.Schedule(stop=2, rounds=1, decay_steps=2)
    pruner = dp.DecayPruner(model, optimizer, x, budget=dp.Budget(macs=0.8), schedule=schedule)
    while not pruner.finished:
        model(x).sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    pruner.compact()
    assert model.c.out_features < 16
    dp.save(tmp_path / "saved", model)
    assert torch.equal(dp.load(tmp_path / "saved", Net())(x), model(x))


def test_calls_are_shown_only_inside() -> None:
    before = torch.jit.ScriptFunction.__call__, torch.jit.RecursiveScriptModule.__call__
    with scripts_shown(Tape(Net())):
        assert torch.jit.ScriptFunction.__call__ is not before[0]
    assert (torch.jit.ScriptFunction.__call__, torch.jit.RecursiveScriptModule.__call__) == before
    assert is_script(Net().b)
    assert not is_script(Net())
