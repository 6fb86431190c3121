"""A cut without training is that of the pruner, and leaves everything else as it was."""

from __future__ import annotations

import copy

import pytest
import torch

import decayprune as dp
from loops import net, same

HALF = dp.Budget(macs=0.5)
INPUTS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DATA = [
    (torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(i)), torch.zeros(8))
    for i in range(1, 5)
]


def test_it_is_the_cut_of_a_pruner_on_the_same_data() -> None:
    model, twin = net(1), net(1)
    report = dp.prune_one_shot(model, INPUTS, budget=HALF, calibrate=DATA)
    still = torch.optim.SGD(twin.parameters(), lr=0.0)
    pruner = dp.DecayPruner(
        twin, still, INPUTS, budget=HALF, schedule=dp.Schedule.at_once(), calibrate=DATA
    )
    still.step()
    pruner.step()
    expected = pruner.compact()
    assert same(model, twin)
    assert report.macs_after == expected.macs_after <= 0.5 * report.macs_before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_taken_over_brings_the_outputs_nearer() -> None:
    model = net(1).eval()
    with torch.no_grad():
        whole = model(INPUTS)

    def distance(**options: object) -> float:
        small = copy.deepcopy(model)
        dp.prune_one_shot(small, INPUTS, budget=HALF, calibrate=DATA, **options)
        with torch.no_grad():
            return float((small(INPUTS) - whole).square().mean())

    assert distance() < distance(importance="random")


@pytest.mark.parametrize("training", [True, False])
def test_frozen_parameters_are_pruned_and_frozen_again(training: bool) -> None:
    frozen, free = net(1), net(1)
    for each in (frozen, free):
        each.train(training)
    frozen.requires_grad_(False)
    frozen.fc.weight.requires_grad_(True)
    with torch.no_grad():  # as around code that infers
        dp.prune_one_shot(frozen, INPUTS, budget=HALF, calibrate=DATA)
    dp.prune_one_shot(free, INPUTS, budget=HALF, calibrate=DATA)
    assert same(frozen, free)
    assert [n for n, p in frozen.named_parameters() if p.requires_grad] == ["fc.weight"]
    assert frozen.training is training


def test_options_say_what_may_leave() -> None:
    model = net(1)
    width = model.c.out_channels
    dp.prune_one_shot(model, INPUTS, budget=HALF, calibrate=DATA, ignored_layers=["c"])
    assert model.c.out_channels == width
    with pytest.raises(TypeError, match="multiple values for keyword argument 'schedule'"):
        dp.prune_one_shot(
            model, INPUTS, budget=HALF, calibrate=DATA, schedule=dp.Schedule.at_once()
        )


def test_a_number_has_nothing_to_read() -> None:
    with pytest.raises(TypeError, match=r"calibrate is data here, your loader .*; found 16\."):
        dp.prune_one_shot(net(1), INPUTS, budget=HALF, calibrate=16)  # type: ignore[arg-type]


def test_an_interrupt_leaves_the_weights_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(1)
    model.a.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    zeros: list[int] = []

    def interrupted(pruner: dp.DecayPruner) -> None:
        zeros.append(int((model.a[0].weight == 0).sum()))
        raise KeyboardInterrupt

    compact = dp.DecayPruner.compact
    monkeypatch.setattr(dp.DecayPruner, "compact", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        dp.prune_one_shot(model, INPUTS, budget=HALF, calibrate=DATA)
    monkeypatch.setattr(dp.DecayPruner, "compact", compact)
    assert zeros[0] > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.a[0].weight.requires_grad
    assert model.fc.weight.requires_grad

    assert caught.value is not None  # what was raised is still held, and holds no model
    assert dp.prune_one_shot(model, INPUTS, budget=HALF, calibrate=DATA).removed > 0
