"""A step while a graph is captured is refused with a word, and changes nothing."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import decayprune as dp
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


@pytest.mark.parametrize("where", ["optimizer", "pruner", "both, attached"])
def test_a_captured_step_is_refused_and_changes_nothing(device: mock.Mock, where: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    schedule = dp.Schedule(stop=10, decay_steps=10)
    pruner = dp.DecayPruner(
        model, optimizer, INPUTS, budget=dp.Budget(structures=0.7), schedule=schedule
    )
    if "attached" in where:
        pruner.attach()
    for batch in batches(2):
        backward(model, batch)
        optimizer.step()
        if "attached" not in where:
            pruner.step()
    before = pruner.state_dict()
    if where == "pruner":
        optimizer.step()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    device.is_current_stream_capturing.return_value = True
    with pytest.raises(RuntimeError, match=r"while a cpu graph is captured.* follow each replay"):
        optimizer.step() if where != "pruner" else pruner.step()
    after = pruner.state_dict()
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert (after["steps"], after["events"]) == (before["steps"], before["events"])
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
