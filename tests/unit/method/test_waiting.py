"""Steps that do not count are told of once for a stretch, at once or a step later."""

from __future__ import annotations

import logging

import pytest
import torch

from benchmarks import accelerator
from decayprune.method.waiting import Waiting


def test_a_stretch_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    waiting = Waiting()
    with caplog.at_level(logging.WARNING, "decayprune"):
        counted = [waiting.tell(step, finite=step not in (2, 3)) for step in range(1, 6)]
    assert counted == [True, False, False, True, True]
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in told] == ["step 2", "step 4"]
    assert "not finite" in told[0]
    assert "goes on" in told[1]


def test_what_a_device_computes_is_told_of_when_it_is_asked_for() -> None:
    waiting = Waiting()
    assert waiting.counted()
    assert not waiting.unread
    with accelerator.simulated():
        waiting.tell_later(7, torch.zeros((), dtype=torch.bool).to(accelerator.DEVICE))
        assert waiting.unread
        assert not waiting.counted()
        assert waiting.counted()  # told once
        waiting.tell_later(8, torch.zeros((), dtype=torch.bool).to(accelerator.DEVICE))
    waiting.forget()
    assert waiting.counted()
