"""Targets and the forms that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.deploy import target
from decayprune.deploy.target import form_of, hardware_of
from decayprune.latency import form
from decayprune.latency.hardware import known

CPU = torch.device("cpu")
GPU = torch.device("cuda")


def test_a_target_is_a_kind_of_processor() -> None:
    own = dp.Hardware(block=4, macs_per_value=1)
    assert hardware_of(own, GPU) == own
    for name in (None, "compiled"):
        assert (hardware_of(name, CPU), hardware_of(name, GPU)) == (known("cpu"), known("cuda"))
    assert hardware_of("onnxruntime", GPU) == known("onnxruntime")
    with pytest.raises(ValueError, match="found 'tpu'"):
        hardware_of("tpu", CPU)


def test_a_target_says_where_and_how_a_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (None, "cpu", dp.Hardware(block=8, macs_per_value=1)):
        assert form_of(name, CPU) == form.eager(CPU)
    assert form_of(None, GPU).device == GPU
    assert form_of(None, GPU).hardware == known("cuda")
    assert form_of("compiled", GPU) == form.compiled(GPU)
    assert form_of("compiled", CPU) != form.eager(CPU)
    sent: list[Any] = []
    monkeypatch.setattr(target, "in_onnxruntime", lambda *found: sent.append(found) or len(sent))
    exported = form_of("onnxruntime", GPU)
    assert (exported.device, exported.hardware) == (CPU, known("onnxruntime"))
    model, inputs = nn.Linear(2, 2), torch.zeros(1, 2)
    assert exported.variants(model, inputs) == [1]
    assert sent == [(model, inputs)]
