"""Which line of a model's code is running: what a refusal points at."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import FrameType

import torch

_NOT_THEIRS = tuple(
    os.path.join(path, "")
    for path in (os.path.dirname(torch.__file__), str(Path(__file__).parents[2]))
)
_LIBRARY = re.compile(r"[/\\](torchvision[/\\]ops|einops)[/\\]")
"""Operators, not models."""


def running_line(ends: str) -> str:
    """``file.py:41`` of the innermost code that is neither torch's nor ours; empty without any.

    Args:
        ends: Name of our function that runs the model: what called it is not the model's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        theirs = not name.startswith(_NOT_THEIRS)
        if theirs and not name.startswith("<") and not _LIBRARY.search(name):
            return f"{_short(name)}:{frame.f_lineno}"
        if not theirs and frame.f_code.co_name == ends:
            return ""
        frame = frame.f_back
    return ""


def _short(name: str) -> str:
    """A file as people name it: from the folder of packages, or its folder and itself."""
    parts = Path(name).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return "/".join(parts[parts.index(folder) + 1 :])
    return "/".join(parts[-2:])
