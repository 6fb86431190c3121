"""Compensation around a pruner, on a network whose hidden units come in equal pairs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp

FOLDER = Path(__file__).parents[2] / "benchmarks" / "pretrained"


@pytest.fixture
def compensate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return pytest.importorskip("compensate")


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

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.down(nn.functional.relu(self.up(x)))


def second_half_first(structures: object, parameters: object) -> Tensor:
    return torch.arange(16, 0, -1).float()


def prepared(compensate: ModuleType, *, decay_steps: int, hand_over: bool, stop: int = 0):
    torch.manual_seed(0)
    model, mask = Net(), torch.ones(64)
    x = torch.randn(64, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # so that all change is the pruner's
    pruner = dp.DecayPruner(
        model, optimizer, (x, mask), budget=dp.Budget(macs=0.5), rectify=None,
        schedule=dp.Schedule(stop=stop or decay_steps, decay_steps=decay_steps),
        importance=second_half_first, round_to=None,
    )  # fmt: skip
    readers = compensate.consumers(model, pruner.structures)
    moments = compensate.calibrate(model, readers, [(x, mask, None)])
    whole = compensate.Compensated(pruner, readers, moments, hand_over=hand_over, ridge=1e-7)
    return model, x, mask, optimizer, whole


def advance(model: nn.Module, x: Tensor, mask: Tensor, optimizer: object, pruner: object) -> None:
    model(x, mask).sum().backward()
    optimizer.step()
    pruner.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(("decay_steps", "hand_over"), [(1, False), (5, False), (5, True)])
def test_what_repeats_others_leaves_without_a_trace(
    compensate: ModuleType, decay_steps: int, hand_over: bool
) -> None:
    model, x, mask, optimizer, pruner = prepared(
        compensate, decay_steps=decay_steps, hand_over=hand_over
    )
    before, middle = model(x, mask).detach(), []
    for _ in range(decay_steps):
        advance(model, x, mask, optimizer, pruner)
        middle.append((model(x, mask) - before).abs().max().item())
    assert pruner.finished
    pruner.compact()
    assert model.up.out_features == 8
    torch.testing.assert_close(model(x, mask), before, rtol=1e-3, atol=1e-3)
    # Handed over along the decay the function never moves; folded at the pick it does meanwhile.
    assert (max(middle) < 1e-3) == (hand_over or decay_steps == 1)


def test_a_released_structure_takes_its_share_back(compensate: ModuleType) -> None:
    from decayprune.method import lifecycle

    model, x, mask, optimizer, pruner = prepared(compensate, decay_steps=10, hand_over=False)
    weight, bias = model.down.weight.detach().clone(), model.down.bias.detach().clone()
    advance(model, x, mask, optimizer, pruner)
    stays = (~pruner.pruner.lifecycle.committed).nonzero().flatten()
    assert not torch.allclose(model.down.weight[:, stays], weight[:, stays])
    inner = pruner.pruner
    ids = inner.lifecycle.decaying
    inner._session.decayer.load(lifecycle.release(inner.lifecycle, ids, cool_until=100))
    with torch.no_grad():
        pruner._settle()
    torch.testing.assert_close(model.down.weight[:, stays], weight[:, stays])
    torch.testing.assert_close(model.down.bias, bias)


def test_importance_needs_a_consumer_that_was_calibrated(compensate: ModuleType) -> None:
    model, x, mask, _, pruner = prepared(compensate, decay_steps=1, hand_over=False)
    structures = pruner.pruner.structures
    readers = compensate.consumers(model, structures)
    moments = compensate.calibrate(model, readers, [(x, mask, None)])
    scores = compensate.variance_importance(moments, readers)(structures, {})
    hidden = nn.functional.relu(model.up(x))
    wanted = hidden.var(0, correction=0) * model.down.weight.square().sum(0)
    torch.testing.assert_close(scores, wanted.sqrt().detach()[structures.index])
    with pytest.raises(ValueError, match="No linear layer that was calibrated reads up"):
        compensate.variance_importance(moments, [])(structures, {})
