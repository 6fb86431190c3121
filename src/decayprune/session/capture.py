"""Whether a device records what it is asked for, to repeat it without Python (a CUDA graph).

While it does, nothing runs and nothing can be asked, so that a host that decides there would decide
on what was before, once and for all.
"""

from __future__ import annotations

import torch

_RECORD = {"cuda", "xpu"}
"""Kinds of devices that can record what is asked of them, and say that they do."""


def capturing(device: torch.device) -> bool:
    """Whether a device records what it is asked for now, and does nothing of it."""
    if device.type not in _RECORD:
        return False
    asked = getattr(torch.get_device_module(device), "is_current_stream_capturing", None)
    return asked is not None and bool(asked())


def refuse_capture(device: torch.device, name: str) -> None:
    """Raise while a graph is captured.

    Args:
        device: Where the parameters are.
        name: What the user calls the host in a loop.

    Raises:
        RuntimeError: One is.
    """
    if capturing(device):
        raise RuntimeError(
            f"optimizer.step() and {name}.step() run while a {device.type} graph is captured, and "
            f"the {name} decides on the host who decays, is released or leaves: a graph would "
            "repeat one step for ever. Capture the forward and the backward pass alone (as "
            "torch.cuda.make_graphed_callables does), and let optimizer.step() and "
            f"{name}.step() follow each replay."
        )
