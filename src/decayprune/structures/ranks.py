"""Whether several processes work on one thing."""

from __future__ import annotations

import torch


def several() -> bool:
    """Whether this process belongs to a group of torch.distributed, be it of one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
