"""A truth that a device computes, read without making the host wait for it."""

from __future__ import annotations

import torch
from torch import Tensor

ASYNCHRONOUS = {"cuda", "xpu"}
"""Kinds of devices that say when a copy to the host has arrived."""


class Flag:
    """One truth on its way from a device of :data:`ASYNCHRONOUS` to the host.

    Args:
        value: Shape ``()``, bool.
    """

    def __init__(self, value: Tensor) -> None:
        self._there = torch.empty((), dtype=torch.bool, pin_memory=True, device="cpu")
        self._there.copy_(value, non_blocking=True)
        self._arrived = torch.get_device_module(value.device).Event()
        self._arrived.record()

    def read(self) -> bool:
        """The value; waits for it alone, and not at all if the device is past it."""
        self._arrived.synchronize()
        return bool(self._there)
