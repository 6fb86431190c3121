"""Forms run what the model computes, as it will be deployed."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from decayprune.latency import hardware
from decayprune.latency.form import Form, compiled, compiled_call, eager

CPU = torch.device("cpu")


def net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.9))


@pytest.mark.parametrize("form", [eager, compiled])
def test_a_model_computes_the_same_in_every_variant_of_a_form(
    form: type[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, *, dynamic: forward)
    model, inputs = net(4).train(), torch.randn(2, 3, 8, 8)
    there = form(CPU)  # type: ignore[call-arg]
    assert (there.device, there.hardware) == (CPU, hardware.known("cpu"))
    variants = there.variants(model, inputs)
    assert len(variants) == 2  # contiguous, channels last
    assert model.training
    assert model[0].weight.is_contiguous()
    with torch.inference_mode():
        expected = model.eval()(inputs)
        for call in variants:
            torch.testing.assert_close(call(), expected)
    assert len(there.variants(nn.Linear(3, 2), torch.randn(4, 3))) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_ninth_model_is_compiled_too() -> None:
    """The compiler gives up on a function after eight; found with one width after the other."""
    torch._dynamo.reset()
    counters.clear()
    inputs = torch.randn(2, 3)
    for width in range(2, 12):
        with torch.inference_mode():
            compiled_call(partial(nn.Linear(3, width), inputs))()
    assert dict(counters["frames"]) == {"total": 10, "ok": 10}
    torch._dynamo.reset()
