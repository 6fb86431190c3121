"""A step counts once, when every optimizer has really taken it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from decayprune.hosts.stepping import StepWatch


def optimizers(count: int = 2) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1) for _ in range(count)]


def test_a_step_is_taken_when_all_have_stepped() -> None:
    calls: list[tuple[int, bool]] = []
    both = optimizers()
    watch = StepWatch(both, lambda one, first: calls.append((both.index(one), first)))
    assert watch.taken() is None
    both[0].step()
    assert watch.taken() is None
    both[1].step()
    assert watch.taken() == 1.0
    assert watch.taken() is None
    both[1].step()
    both[0].step()
    assert calls == [(0, True), (1, False), (1, True), (0, False)]
    watch.forget()
    assert watch.taken() is None


def test_a_step_that_a_scaler_skipped_inside_a_fused_optimizer_does_not_count() -> None:
    one = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, fused=True)
    watch = StepWatch([one], lambda optimizer, first: None)
    one.found_inf = torch.tensor(1.0)
    one.step()
    assert watch.taken() is None
    one.found_inf, one.grad_scale = torch.tensor(0.0), torch.tensor(64.0)
    one.step()
    assert watch.taken() == 64.0


@pytest.mark.parametrize("how", ["close", "forget"])
def test_nothing_is_called_once_it_is_over(how: str) -> None:
    (one,) = optimizers(1)
    calls: list[bool] = []
    watch = StepWatch([one], lambda optimizer, first: calls.append(first))
    alive = weakref.ref(watch)
    if how == "close":
        watch.close()
    else:
        del watch
        gc.collect()
        assert alive() is None
    one.step()
    assert calls == []
