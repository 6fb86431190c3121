"""Release by what the others cannot replace, against least squares."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType

import pytest
import torch

import decayprune as dp
from decayprune.app.pretrained.arms import ArmRun, Start, pruned
from decayprune.app.pretrained.loop import train
from decayprune.compensation.moments import RunningMoments
from pretrained_toy import Toy

FOLDER = Path(__file__).parents[2] / "benchmarks" / "pretrained"


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return pytest.importorskip("residual")


def test_what_comes_back_is_what_least_squares_gain(ablation: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator).double()
    x[:, 1] += x[:, 4]  # the others can replace much of it
    weight = torch.randn(3, 6, generator=generator).double()
    staying, leaving = torch.tensor([3, 4, 5]), torch.tensor([0, 1, 2])
    moments = RunningMoments(6)
    moments.add(x)

    def error(kept: torch.Tensor) -> float:
        """Of the outputs that all lose, the kept inputs having been fitted anew."""
        lost = x[:, leaving] @ weight[:, leaving].T
        known = torch.cat([x[:, kept], torch.ones(len(x), 1).double()], 1)
        return float((lost - known @ torch.linalg.lstsq(known, lost).solution).square().sum())

    unexplained = ablation.residual(moments.result(), staying, leaving)
    found = ablation.given_back(weight[:, leaving], unexplained)
    whole = error(staying)
    expected = [1 - error(torch.cat([staying, leaving[i : i + 1]])) / whole for i in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("order", ["work", "residual", "both", "random"])
def test_as_many_are_released_in_every_order(
    ablation: ModuleType, order: str, tmp_path: Path
) -> None:
    task = Toy(tmp_path)
    run = ArmRun(arm=order, seed=0, steps=60, budget=0.5, lr=0.01, dense_steps=30)
    start = Start(task, run, task.data())
    subject = ablation.released_by(order, 0.5)(start)
    trained = train(
        subject.model, start.data["train"].forever(0), 60, 0.01, title=order,
        pruner_on=subject.pruner_on,
    )  # fmt: skip
    kinds = [event.kind for event in trained["pruner"].events]
    assert (kinds.count("decay"), kinds.count("release"), kinds.count("prune")) == (6, 2, 4)
    assert task.widths(subject.model) == {"hidden": [4]}


def test_what_is_released_has_its_length_back(ablation: ModuleType, tmp_path: Path) -> None:
    task = Toy(tmp_path)
    run = ArmRun(arm="back", seed=0, steps=60, budget=0.5, lr=0.0, dense_steps=30)
    start = Start(task, run, task.data())
    dense = copy.deepcopy(start.dense)
    subject = ablation.restored(pruned(rectify=dp.Rectify(extra=0.5)))(start)
    model, optimizer = subject.model, torch.optim.SGD(subject.model.parameters(), lr=0.0)
    assert subject.pruner_on is not None
    pruner = subject.pruner_on(optimizer)
    for _, (inputs, labels) in zip(range(8), start.data["train"].forever(0), strict=False):
        torch.nn.functional.cross_entropy(model(**inputs), labels).backward()
        optimizer.step()
        pruner.step()
    released = [event.structure for event in pruner.events if event.kind == "release"]
    assert len(released) == 2
    torch.testing.assert_close(model.up.weight[released], dense.up.weight[released])
    torch.testing.assert_close(model.up.bias[released], dense.up.bias[released])
    torch.testing.assert_close(model.down.weight[:, released], dense.down.weight[:, released])
