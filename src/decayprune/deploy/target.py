"""Where a model will run: the names that ``target`` takes, and the form each of them stands for."""

from __future__ import annotations

import torch

from decayprune.deploy.export import in_onnxruntime
from decayprune.latency import hardware
from decayprune.latency.form import Form, compiled, eager
from decayprune.latency.hardware import Hardware


def hardware_of(target: str | Hardware | None, device: torch.device) -> Hardware:
    """The kind of processor that a target is.

    Args:
        target: As for the pruner; None and ``"compiled"``: where the parameters are.
        device: Of the parameters.

    Raises:
        ValueError: It has a name that is not known.
    """
    if isinstance(target, Hardware):
        return target
    return hardware.of(device) if target in (None, "compiled") else hardware.known(target)


def form_of(target: object, device: torch.device) -> Form:
    """The form that a target is deployed in, on this machine.

    Args:
        target: ``"onnxruntime"``: exported, on this machine's processor; ``"compiled"``: under
            ``torch.compile`` where its parameters are; anything else: as it is trained there.
        device: Of its parameters.
    """
    if target == "compiled":
        return compiled(device)
    if target != "onnxruntime":
        return eager(device)
    return Form(
        variants=lambda model, inputs: [in_onnxruntime(model, inputs)],
        device=torch.device("cpu"),
        hardware=hardware.known("onnxruntime"),
    )
