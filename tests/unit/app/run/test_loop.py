import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decayprune.app.run import loop
from decayprune.app.run.batches import MemoryBatches
from decayprune.app.run.loop import cosine, evaluate, train_steps


def batches() -> MemoryBatches:
    images = torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8)
    targets = images.flatten(1).float().argmax(1) % 3
    return MemoryBatches(images, targets, (0.5,), (0.3,), 8, shuffle=True)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 3))


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def test_cosine_is_half_a_cosine() -> None:
    assert cosine(10, 10, 20, 0.4) == 0.4
    assert cosine(15, 10, 20, 0.4) == pytest.approx(0.2)
    assert cosine(20, 10, 20, 0.4) == pytest.approx(0)
    assert cosine(25, 10, 20, 0.4) == pytest.approx(0)
    rates = [cosine(step, 0, 50, 1.0) for step in range(51)]
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_steps_equal_those_written_by_hand() -> None:
    data, model = batches(), net()[:3]  # no dropout
    twin = copy.deepcopy(model)
    steps = list(train_steps(model, sgd(model), data, start=0, stop=7, lr=lambda s: 0.1 / (s + 1)))

    optimizer = sgd(twin)
    order = itertools.chain(data.epoch(0), data.epoch(1))
    for number, (x, y) in zip(range(7), order, strict=False):
        optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        loss = F.cross_entropy(twin(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(steps[number].loss, loss.detach())
    assert [step.number for step in steps] == list(range(7))
    assert [step.lr for step in steps] == [0.1 / (n + 1) for n in range(7)]
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_entered_in_the_middle_it_goes_on_bit_for_bit(cut: int) -> None:
    data, model = batches(), net()
    start = copy.deepcopy(model.state_dict())
    list(train_steps(model, sgd(model), data, start=0, stop=12, lr=lambda s: 0.1, seed=5))

    first = net()
    first.load_state_dict(start)
    optimizer = sgd(first)
    list(train_steps(first, optimizer, data, start=0, stop=cut, lr=lambda s: 0.1, seed=5))
    torch.rand(11)  # another process has drawn other numbers
    second, resumed = net(), None
    second.load_state_dict(first.state_dict())
    resumed = sgd(second)
    resumed.load_state_dict(optimizer.state_dict())
    list(train_steps(second, resumed, data, start=cut, stop=12, lr=lambda s: 0.1, seed=5))
    for a, b in zip(model.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_pruner_observes_before_clipping_and_steps_after_the_optimizer() -> None:
    model = net()
    seen: list[tuple[str, float, bool]] = []
    before = [p.detach().clone() for p in model.parameters()]

    class Spy:
        def note(self, name: str) -> None:
            norm = float(
                torch.stack(
                    [p.grad.norm() for p in model.parameters() if p.grad is not None]
                ).norm()
            )
            moved = not torch.equal(before[0], next(model.parameters()))
            seen.append((name, norm, moved))

        def observe(self) -> None:
            self.note("observe")

        def step(self) -> None:
            self.note("step")

    data = batches()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
        before[0].copy_(next(model.parameters()))
    list(train_steps(model, sgd(model), data, start=0, stop=1, lr=lambda s: 0.1, pruner=Spy()))
    (first, large, moved_first), (second, small, moved_second) = seen
    assert (first, second) == ("observe", "step")
    assert large > loop.CLIP
    assert small == pytest.approx(loop.CLIP, rel=1e-3)
    assert (moved_first, moved_second) == (False, True)


class Sick:
    """Batches of which some make the loss NaN."""

    def __init__(self, sick: range) -> None:
        self.sick = sick

    def __len__(self) -> int:
        return 100

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for position in range(first, 100):
            x = torch.full((4, 1, 4, 4), float("nan") if position in self.sick else 0.5)
            yield x, torch.zeros(4, dtype=torch.int64)


def test_steps_with_nan_change_nothing() -> None:
    model = net()
    optimizer = sgd(model)
    running = train_steps(model, optimizer, Sick(range(2, 5)), start=0, stop=8, lr=lambda s: 0.1)
    weights = []
    for step in running:
        weights.append(next(model.parameters()).detach().clone())
        assert bool(step.loss.isfinite()) == (step.number not in range(2, 5))
    assert torch.equal(weights[1], weights[4])
    assert not torch.equal(weights[4], weights[5])
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_run_that_stays_nan_is_given_up() -> None:
    model = net()
    with pytest.raises(RuntimeError, match=r"infinite or NaN in 51 steps in a row.*--lr"):
        list(train_steps(model, sgd(model), Sick(range(100)), start=0, stop=90, lr=lambda s: 0.1))


def test_accuracy_is_the_share_of_right_answers_and_the_mode_is_restored() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(16, 3)).train()
    data = batches()
    test = MemoryBatches(data.images, data.targets, data.mean, data.std, 7)
    ticks: list[int] = []
    found = evaluate(model, test, tick=lambda: ticks.append(1))
    assert model.training
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test.epoch(0))
    assert found == right / 40
    assert len(ticks) == len(test)


@pytest.mark.parametrize("outputs", [lambda x: x.sum(), lambda x: {"logits": x}])
def test_what_is_no_classifier_is_refused(outputs: object) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> object:
            return outputs(self.fc(x))  # type: ignore[operator]

    with pytest.raises(TypeError, match=r"logits \(batch, classes\).*give --loss pkg.mod:fun"):
        evaluate(Odd(), batches())


def test_bf16_trains() -> None:
    model = net()[:3]
    data = batches()
    steps = list(
        train_steps(model, sgd(model), data, start=0, stop=30, lr=lambda s: 0.05, bf16=True)
    )
    assert float(steps[-1].loss) < float(steps[0].loss)
    assert next(model.parameters()).dtype == torch.float32
