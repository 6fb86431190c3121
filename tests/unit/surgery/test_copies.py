"""Copies of a model, moving averages above all, are cut along with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import decayprune as dp
from decayprune.structures.example import outputs
from loops import OPTIMIZERS, Net, backward, batches, net, pruner_for, same, train
from reference import ops as slow

STEPS = 22
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(9))


def finished(averages: int = 1) -> tuple[Net, torch.optim.Optimizer, dp.DecayPruner, list]:
    """A run with moving averages that still remember what the model has lost."""
    model = net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer)
    emas = [AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for _ in range(averages)]
    for batch in batches(STEPS):
        backward(model, batch)
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        for ema in emas:
            ema.update_parameters(model)
    return model, optimizer, pruner, emas


def zeroed(pruner: dp.DecayPruner, model: nn.Module) -> nn.Module:
    """A copy with zeros where structures leave, written one by one."""
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    for structure in pruner.lifecycle.pruned.nonzero().flatten().tolist():
        for name, dim, index in slow.pieces(pruner.structures, structure):
            parameters[name].data.select(dim, index).zero_()
    return twin


def on_images(model: nn.Module) -> Tensor:
    return outputs(model, IMAGES)[0]


def test_an_average_is_zeroed_and_cut_at_the_same_structures() -> None:
    model, _, pruner, (ema,) = finished()
    expected, identities = on_images(zeroed(pruner, ema.module)), list(ema.parameters())
    assert not torch.allclose(expected, on_images(ema), atol=1e-4)  # it did remember them
    pruner.compact(copies=[ema])
    assert [p.shape for p in ema.module.parameters()] == [p.shape for p in model.parameters()]
    assert [b.shape for b in ema.module.buffers()] == [b.shape for b in model.buffers()]
    torch.testing.assert_close(on_images(ema), expected)
    assert all(a is b for a, b in zip(ema.parameters(), identities, strict=True))


def test_averaging_and_training_go_on_after_the_cut() -> None:
    model, optimizer, pruner, (ema,) = finished()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    pruner.compact(copies=ema)  # one alone needs no list
    before, weight = ema.module.fc.weight.clone(), model.fc.weight.clone()
    rate = optimizer.param_groups[0]["lr"]
    train(model, optimizer, 1, first=STEPS)
    scheduler.step()
    ema.update_parameters(model)
    assert optimizer.param_groups[0]["lr"] == rate / 2
    assert not torch.equal(model.fc.weight, weight)
    torch.testing.assert_close(ema.module.fc.weight, before.lerp(model.fc.weight, 0.1))


def test_several_copies_bare_or_wrapped() -> None:
    model, _, pruner, emas = finished(2)
    plain = copy.deepcopy(model)
    pruner.compact(copies=[*emas, plain])
    assert same(plain, model)
    assert same(emas[0], emas[1])


@pytest.mark.parametrize("wrong", ["other shape", "other names", "shared", "itself", "no module"])
def test_nothing_is_cut_if_a_copy_does_not_fit(wrong: str) -> None:
    model, _, pruner, (ema,) = finished()
    shared = copy.deepcopy(model)
    shared.fc.bias = model.fc.bias
    wide = copy.deepcopy(model)
    wide.c = nn.Conv2d(12, 9, 3)
    copies = {
        "other shape": (wide, r"its c\.weight is \(9, 12, 3, 3\), the model's is \(8, 12, 3, 3\)"),
        "other names": (nn.Linear(2, 2), "a Linear, is no copy of this model: it has no stem"),
        "shared": (shared, r"shares fc\.bias with the model"),
        "itself": (model, "shares .* with the model"),
        "no module": (model.state_dict(), "pass the modules"),
    }
    one, match = copies[wrong]
    before, average = copy.deepcopy(model), copy.deepcopy(ema)
    with pytest.raises((ValueError, TypeError), match=match):
        pruner.compact(copies=[ema, one])
    assert same(before, model)
    assert same(average, ema)
    assert pruner.compact(copies=[ema]).removed  # it can be tried again


class Hard(Net):
    """Fits by its names and shapes, and does not run once it is narrower."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.a[0].weight.view(10, 12, 9).sum() * 0


def test_model_and_copies_are_put_back_if_the_cut_of_one_fails() -> None:
    model, optimizer, pruner, (ema,) = finished()
    hard = Hard()
    before, average, hard_before = (copy.deepcopy(m) for m in (model, ema, hard))
    moments = {p: optimizer.state[p]["momentum_buffer"] for p in model.parameters()}
    with pytest.raises(dp.CompactionError, match=r"copies\[1\] would change it: forward\(\) fails"):
        pruner.compact(copies=[ema, hard])
    assert same(before, model)
    assert same(average, ema)
    assert same(hard_before, hard)
    assert all(optimizer.state[p]["momentum_buffer"] is m for p, m in moments.items())
    assert pruner.compact(copies=[ema]).removed


def test_copies_come_with_the_cut_or_never() -> None:
    _, _, pruner, (ema,) = finished()
    pruner.compact()
    with pytest.raises(RuntimeError, match=r"call compact\(copies=\.\.\.\) once, with all"):
        pruner.compact(copies=[ema])
