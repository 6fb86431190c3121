"""The penalty that preserves trainability, against autograd."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from decayprune.app.pretrained.arms import ArmRun, Start, compensated
from decayprune.app.pretrained.loop import train
from pretrained_toy import Toy

FOLDER = Path(__file__).parents[2] / "benchmarks" / "pretrained"


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return pytest.importorskip("trainability")


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 2, 2)])
def test_the_gradient_is_that_of_the_published_penalty(
    trial: ModuleType, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = torch.tensor([False, True, False, False, True])
    stays = (~leaves).double()
    gram = weight.flatten(1) @ weight.flatten(1).T
    (gram * (1 - torch.outer(stays, stays))).square().sum().div(2).backward()
    assert weight.grad is not None
    torch.testing.assert_close(trial.decorrelation(weight.detach(), leaves), weight.grad)


def test_what_leaves_ends_less_correlated_than_by_decay_alone(
    trial: ModuleType, tmp_path: Path
) -> None:
    task = Toy(tmp_path)
    run = ArmRun(arm="tpp", seed=0, steps=60, budget=0.5, lr=0.01, dense_steps=30)
    plain = compensated("sensitivity", releases=False)
    overlaps = {}
    for name, arm in {"plain": plain, "apart": trial.decorrelated(plain)}.items():
        subject = arm(Start(task, run, task.data()))
        seen: list[torch.Tensor] = []

        def glance(step: int, model=subject.model, seen=seen) -> None:  # type: ignore[no-untyped-def]
            if step == 5:  # the last step before the cut
                seen.append(model.up.weight.detach().clone())

        trained = train(
            subject.model, task.data()["train"].forever(0), 60, 0.01, title=name,
            pruner_on=subject.pruner_on, glance=glance,
        )  # fmt: skip
        assert trained["report"].macs_after <= 0.5 * trained["report"].macs_before
        kept = subject.model.up.weight
        assert kept.shape[0] < seen[0].shape[0]
        gone = seen[0].norm(dim=1).sort().indices[: seen[0].shape[0] - kept.shape[0]]
        stays = [i for i in range(len(seen[0])) if i not in gone.tolist()]
        directions = torch.nn.functional.normalize(seen[0], dim=1)
        overlaps[name] = float((directions[gone] @ seen[0][stays].T).square().sum())
    assert overlaps["apart"] < overlaps["plain"]
