"""The forms that a model is deployed in, and what runs it there.

How fast widths are depends on what runs them: a compiler merges a normaliser and a nonlinearity
into their layer, and another runtime lays weights out anew. So a latency is measured in the form
that will be deployed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from decayprune.latency import hardware
from decayprune.latency.memory_format import Call, formats, in_format
from decayprune.structures.example import ExampleInputs


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a model is run where it is deployed.

    Attributes:
        variants: What runs a model on inputs, in evaluation mode; of several the fastest counts.
        device: Where it runs.
        hardware: What is known of that before anything is measured.
    """

    variants: Callable[[nn.Module, ExampleInputs], list[Call]]
    device: torch.device
    hardware: hardware.Hardware


def eager(device: torch.device) -> Form:
    """As torch runs it, layer by layer, in each memory format that it may be faster in.

    Args:
        device: Of its parameters.
    """
    return Form(variants=_in_formats, device=device, hardware=hardware.of(device))


def compiled(device: torch.device) -> Form:
    """Under ``torch.compile``, in the same memory formats.

    Args:
        device: Of its parameters.
    """
    return Form(variants=_compiled_in_formats, device=device, hardware=hardware.of(device))


def compiled_call(call: Call) -> Call:
    """A call under ``torch.compile``, compiled for the grad mode that is on now.

    The compiler keeps eight versions of a function and runs it as it is from then on, without
    a word: so each call is a function of its own.

    Args:
        call: Its inputs have one shape.
    """

    def forward() -> object:
        return call()

    forward.__code__ = forward.__code__.replace()
    quick: Call = torch.compile(forward, dynamic=False)
    quick()
    return quick


def _in_formats(model: nn.Module, example_inputs: ExampleInputs) -> list[Call]:
    found = [in_format(model, example_inputs, f) for f in formats(example_inputs)]
    return [call for other, call in found if other.eval()]


def _compiled_in_formats(model: nn.Module, example_inputs: ExampleInputs) -> list[Call]:
    calls = _in_formats(model, example_inputs)
    with torch.inference_mode():  # as they are timed: they would be compiled anew elsewhere
        return [compiled_call(call) for call in calls]
