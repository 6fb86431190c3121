import math
from pathlib import Path

import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.app.pretrained.loop import evaluate, learning_rate, normalised_anew, set_rate, train
from pretrained_toy import Net, Points, Toy


def test_the_rate_rises_to_its_peak_and_falls_to_nearly_zero() -> None:
    rates = [learning_rate(step, 100, 0.5) for step in range(100)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.25 * (1 + math.cos(math.pi * 94 / 95)))


def test_one_step_is_enough_to_have_a_rate() -> None:
    assert learning_rate(0, 1, 0.5) == 0.5


def test_the_rate_is_set_in_every_group() -> None:
    model = Net()
    groups = [{"params": [p], "lr": 1.0} for p in model.parameters()]
    optimizer = torch.optim.SGD(groups)
    set_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_training_learns_and_tells_each_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data, seen = Net(), Toy(tmp_path).data(), []
    before = evaluate(model, data["test"])
    train(model, data["train"].forever(0), 100, 0.02, title="toy", glance=seen.append)
    assert seen == list(range(1, 101))
    assert evaluate(model, data["test"]) > max(before, 0.85)


def test_an_arm_may_bring_its_own_optimizer_of_what_is_trained_at_the_rate_of_the_run() -> None:
    model, asked = Net(), []
    model.up.weight.requires_grad_(False)
    frozen = model.up.weight.clone()

    def optimizer_on(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        asked.append((len(parameters), lr))
        return torch.optim.SGD(parameters, lr=lr)

    before = model.down.weight.clone()
    train(model, Points(0).forever(0), 1, 0.5, title="toy", optimizer_on=optimizer_on)
    assert asked == [(len(list(model.parameters())) - 1, 0.5)]
    assert torch.equal(model.up.weight, frozen)
    assert not torch.equal(model.down.weight, before)


def test_a_pruner_that_does_not_finish_is_an_error() -> None:
    class Never:
        finished = False

        def observe(self) -> None: ...
        def step(self) -> None: ...

    with pytest.raises(RuntimeError, match="toy: the pruner has not finished within 3 steps"):
        train(Net(), Points(0).forever(0), 3, 0.1, title="toy", pruner_on=lambda optimizer: Never())


def test_of_no_steps_a_cut_alone_is_left() -> None:
    model = Net()
    whole = model.up.weight.detach().clone()

    def pruner_on(optimizer: torch.optim.Optimizer) -> dp.DecayPruner:
        return dp.DecayPruner(
            model,
            optimizer,
            torch.randn(2, 4),
            budget=dp.Budget(macs=0.5),
            schedule=dp.Schedule.at_once(),
            importance="magnitude",
        )

    found = train(model, Points(0).forever(0), 0, 0.1, title="toy", pruner_on=pruner_on)
    assert len(model.up.weight) == len(whole) // 2
    assert found["report"].removed == len(whole) // 2
    assert torch.equal(model.up.weight, whole[found["report"].kept["up.weight", 0]])


def test_what_is_taught_follows_the_teacher_against_the_labels() -> None:
    class Contrary(Net):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            side = (inputs.sum(1) > 0).float()
            return 50 * torch.stack([side, 1 - side], 1)

    def trained(teacher: Net | None) -> float:
        torch.manual_seed(0)
        model = Net()
        train(model, Points(0).forever(0), 150, 0.02, title="toy", teacher=teacher)
        return evaluate(model, Points(2))

    assert trained(Contrary().eval()) < trained(None) - 0.2


def test_accuracy_is_counted_and_the_mode_comes_back() -> None:
    model, part = Net().train(), Points(2)
    inputs, labels = next(part.once())
    found = evaluate(model, part)
    assert model.training
    assert found == sum(
        int(model(x[None]).argmax()) == int(y)
        for x, y in zip(inputs["inputs"], labels, strict=True)
    ) / len(labels)


def test_statistics_are_those_of_the_batches_alone() -> None:
    model = Normalised().eval()
    model.norm(torch.full((2, 3), 100.0))
    batches = [({"x": torch.randn(8, 3) + shift}, torch.zeros(8)) for shift in (1.0, 3.0)]
    assert normalised_anew(model, batches)
    whole = torch.stack([inputs["x"].mean(0) for inputs, _ in batches]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, whole)
    assert model.norm.momentum == 0.01
    assert not model.training


def test_what_does_not_normalise_batches_is_left_alone() -> None:
    assert not normalised_anew(nn.Linear(2, 2), iter(()))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(x)
        return found
