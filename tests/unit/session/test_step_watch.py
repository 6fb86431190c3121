"""A step counts once, when every optimizer has really taken it."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from decayprune.session.step_watch import StepWatch, grad_scale


def optimizers(count: int = 2) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1) for _ in range(count)]


class Host:
    """Notes who steps, and whether it is the first."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.optim.Optimizer, bool]] = []
        self.whole = 0

    def before(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        self.calls.append((optimizer, first))

    def after(self) -> None:
        self.whole += 1


def test_a_step_is_taken_when_all_have_stepped() -> None:
    host, (a, b) = Host(), optimizers()
    watch = StepWatch([a, b], host.before)
    assert not watch.taken()
    a.step()
    assert not watch.taken()
    b.step()
    assert watch.taken()
    assert not watch.taken()
    b.step()
    a.step()
    assert host.calls == [(a, True), (b, False), (b, True), (a, False)]
    watch.forget()
    assert not watch.taken()


def test_a_step_that_was_never_completed_does_not_hide_the_next_first() -> None:
    host, (a, b) = Host(), optimizers()
    watch = StepWatch([a, b], host.before)
    a.step()
    a.step()
    b.step()
    assert host.calls == [(a, True), (a, True), (b, False)]
    assert watch.taken()


def test_a_method_is_called_after_the_last_of_them() -> None:
    host, (a, b) = Host(), optimizers()
    watch = StepWatch([a, b], host.before, host.after)
    a.step()
    assert host.whole == 0
    b.step()
    assert host.whole == 1
    watch.close()


def test_a_step_that_a_scaler_skipped_inside_a_fused_optimizer_does_not_count() -> None:
    one = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, fused=True)
    host = Host()
    watch = StepWatch([one], host.before, host.after)
    one.found_inf = torch.tensor(1.0)
    one.step()
    assert not watch.taken()
    one.found_inf = torch.tensor(0.0)
    one.step()
    assert watch.taken()
    assert host.whole == 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_fused_optimizers_leave_unscaled_gradients(kind: type[torch.optim.Optimizer]) -> None:
    """What is read before the step is still scaled; what is read after it is not."""
    weight = nn.Parameter(torch.ones(3))
    one = kind([weight], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scales = []
    one.register_step_pre_hook(lambda o, args, kwargs: scales.append(grad_scale(o)))
    scaler.scale(weight.sum()).backward()
    assert torch.equal(weight.grad, torch.full((3,), 64.0))
    scaler.step(one)
    assert scales == [64.0]
    assert torch.equal(weight.grad, torch.ones(3))


@pytest.mark.parametrize("how", ["close", "forget"])
def test_nothing_is_called_once_it_is_over(how: str) -> None:
    (one,) = optimizers(1)
    host = Host()
    watch = StepWatch([one], host.before)
    calls = host.calls
    if how == "close":
        watch.close()
    else:
        watch_alive, host_alive = weakref.ref(watch), weakref.ref(host)
        del watch, host  # nothing holds them in a circle: they are gone without a collection
        assert watch_alive() is None
        assert host_alive() is None
    one.step()
    assert calls == []
