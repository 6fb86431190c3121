"""Compensation handed over along the decay, on a network whose hidden units come in pairs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from decayprune.compensation.calibration import calibrate

FOLDER = Path(__file__).parents[2] / "benchmarks" / "pretrained"


@pytest.fixture
def handover(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return pytest.importorskip("handover")


class Net(nn.Module):
    """An FFN; the second half of its units repeats the first.

    With ReLU: under GELU a shrinking row does not shrink its unit's output in proportion, and what
    is handed over along the decay is right at both ends only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.up.weight[8:] = self.up.weight[:8]
            self.up.bias[8:] = self.up.bias[:8]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.relu(self.up(x)))


class Maps(nn.Module):
    """The same of convolutions, whose kernels have positions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(6, 16, 3), nn.Conv2d(16, 4, 3)
        with torch.no_grad():
            self.up.weight[8:] = self.up.weight[:8]
            self.up.bias[8:] = self.up.bias[:8]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.relu(self.up(x)))


def second_half_first(structures: object, parameters: object) -> Tensor:
    return torch.arange(16, 0, -1).float()


Prepared = tuple[Any, Tensor, torch.optim.Optimizer, Any]


def prepared(handover: ModuleType, *, decay_steps: int, maps: bool = False) -> Prepared:
    torch.manual_seed(0)
    model, x = (Maps(), torch.randn(8, 6, 7, 7)) if maps else (Net(), torch.randn(64, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # so that all change is the pruner's
    pruner = dp.DecayPruner(
        model, optimizer, x, budget=dp.Budget(macs=0.5), rectify=None,
        schedule=dp.Schedule(stop=decay_steps, decay_steps=decay_steps),
        importance=second_half_first, round_to=None,
    )  # fmt: skip
    read = calibrate(model, pruner.structures, [x])
    return model, x, optimizer, handover.HandOver(pruner, read)


def advance(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, pruner: Any) -> None:
    model(x).sum().backward()
    optimizer.step()
    pruner.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("decay_steps", [1, 5])
@pytest.mark.parametrize("maps", [False, True])
def test_what_repeats_others_leaves_without_a_trace(
    handover: ModuleType, decay_steps: int, maps: bool
) -> None:
    model, x, optimizer, pruner = prepared(handover, decay_steps=decay_steps, maps=maps)
    before = model(x).detach()
    for _ in range(decay_steps):
        advance(model, x, optimizer, pruner)
        # Handed over along the decay the function never moves, but for the ridge.
        torch.testing.assert_close(model(x), before, rtol=2e-3, atol=2e-3)
    assert pruner.finished
    pruner.compact()
    assert len(model.up.weight) == 8
    torch.testing.assert_close(model(x), before, rtol=2e-3, atol=2e-3)


def test_rows_that_leave_a_consumer_stay_zero(handover: ModuleType) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    x, optimizer = torch.randn(64, 5), torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = dp.DecayPruner(
        model, optimizer, x, budget=dp.Budget(macs=0.4), rectify=None,
        schedule=dp.Schedule(stop=4, decay_steps=4),
    )  # fmt: skip
    handing = handover.HandOver(pruner, calibrate(model, pruner.structures, [x]))
    for _ in range(4):
        advance(model, x, optimizer, handing)
    handing.compact()
    assert len(model[2].weight) < 12
    assert model[2].weight.shape[1] < 12


def test_a_released_structure_takes_its_share_back(handover: ModuleType) -> None:
    from decayprune.method import lifecycle

    model, x, optimizer, pruner = prepared(handover, decay_steps=10)
    weight, bias = model.down.weight.detach().clone(), model.down.bias.detach().clone()
    for _ in range(5):
        advance(model, x, optimizer, pruner)
    stays = (~pruner.pruner.lifecycle.committed).nonzero().flatten()
    assert not torch.allclose(model.down.weight[:, stays], weight[:, stays])
    inner = pruner.pruner
    ids = inner.lifecycle.decaying
    inner._session.decayer.load(lifecycle.release(inner.lifecycle, ids, cool_until=100))
    with torch.no_grad():
        pruner._settle()
    torch.testing.assert_close(model.down.weight[:, stays], weight[:, stays])
    torch.testing.assert_close(model.down.bias, bias)
