"""The forms that a model is deployed in, and what runs it there.

How fast widths are depends on what runs them: a compiler merges a normaliser and a nonlinearity
into their layer, and another runtime lays weights out anew. So a latency is measured in the form
that will be deployed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_map

from decayprune.latency import hardware
from decayprune.latency.memory_format import Call, converted, formats, in_format
from decayprune.structures.example import ExampleInputs, arguments


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
    return Form(variants=_in_formats, device=device, hardware=_kind(device))


def compiled(device: torch.device) -> Form:
    """Under ``torch.compile``, in the same memory formats.

    Args:
        device: Of its parameters.
    """
    return Form(variants=_compiled_in_formats, device=device, hardware=_kind(device))


def compiled_call(
    model: nn.Module, example_inputs: ExampleInputs, memory_format: torch.memory_format
) -> Call:
    """What runs a twin of a model under ``torch.compile``; its first call compiles.

    The compiler keeps eight versions of a function and runs it as it is from then on, without
    a word: so each twin has a function of its own.

    Args:
        model: Read only.
        example_inputs: One batch; the only shape it is compiled for.
        memory_format: Of all weights and inputs with four dimensions.
    """
    other, _ = in_format(model, example_inputs, memory_format)
    convert = partial(converted, memory_format=memory_format)
    args, kwargs = tree_map(convert, arguments(example_inputs))

    def forward() -> object:
        return other(*args, **kwargs)

    forward.__code__ = forward.__code__.replace()
    return torch.compile(forward, dynamic=False)


def _kind(device: torch.device) -> hardware.Hardware:
    return hardware.known("cpu" if device.type == "cpu" else "cuda")


def _in_formats(model: nn.Module, example_inputs: ExampleInputs) -> list[Call]:
    found = [in_format(model, example_inputs, f) for f in formats(example_inputs)]
    return [call for other, call in found if other.eval()]


def _compiled_in_formats(model: nn.Module, example_inputs: ExampleInputs) -> list[Call]:
    calls = []
    for memory_format in formats(example_inputs):
        other, _ = in_format(model, example_inputs, memory_format)
        calls.append(compiled_call(other.eval(), example_inputs, memory_format))
    with torch.inference_mode():  # as they are timed: they would be compiled anew elsewhere
        for call in calls:
            call()
    return calls
