"""A host that decides at every step refuses one in a captured graph, and changes nothing."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import decayprune as dp
from decayprune.hosts import HESSO, GateDecorator, TickTock
from decayprune.session import capture
from loops import INPUTS, backward, batches, net

CUDA = torch.device("cuda", 0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """A device that can be captured on, and stands for the CPU here."""
    found = mock.Mock()
    found.device_count.return_value = 0
    found.is_current_stream_capturing.return_value = False
    monkeypatch.setattr(torch, "get_device_module", lambda _: found)
    monkeypatch.setattr(capture, "_RECORD", {"cuda", "cpu"})
    return found


def test_a_device_says_whether_it_records(device: mock.Mock) -> None:
    assert not capture.capturing(CUDA)
    device.is_current_stream_capturing.return_value = True
    assert capture.capturing(CUDA)
    assert not capture.capturing(torch.device("mps"))  # and was not asked
    del device.is_current_stream_capturing  # of another kind, or another torch
    assert not capture.capturing(CUDA)


def test_a_cpu_is_not_asked() -> None:
    assert not capture.capturing(torch.device("cpu"))


@pytest.mark.parametrize("name", ["hesso", "gate decorator", "gate decorator, its step alone"])
def test_a_captured_step_is_refused_and_changes_nothing(device: mock.Mock, name: str) -> None:
    model = net()
    host: HESSO | GateDecorator
    if name == "hesso":
        host = HESSO(model, INPUTS, 0.05, pruning_steps=20)
        steps = [host.step]
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        ticks = TickTock(tick_steps=2, tock_steps=2, ticks=3, share=0.1)
        host = GateDecorator(
            model, optimizer, INPUTS, budget=dp.Budget(macs=0.8), schedule=ticks, decay_steps=2
        )
        steps = [optimizer.step, host.step]
    for batch in batches(2):
        backward(model, batch)
        for step in steps:
            step()
    before, counted = host.lifecycle.state_dict(), (host.steps, host.events)
    if "alone" in name:
        steps[0]()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    device.is_current_stream_capturing.return_value = True
    with pytest.raises(RuntimeError, match=r"while a cpu graph is captured.* follow each replay"):
        steps[-1 if "alone" in name else 0]()
    torch.testing.assert_close(host.lifecycle.state_dict(), before, rtol=0, atol=0)
    assert (host.steps, host.events) == counted
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)
