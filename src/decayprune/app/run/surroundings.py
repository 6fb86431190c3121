"""What a figure was made with: versions, the machine, and the commit of decayprune."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import decayprune as dp
from decayprune.latency.benchmark import cpu_name


def versions() -> dict[str, str]:
    """Of decayprune, torch and Python."""
    return {
        "decayprune": dp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def machine(threads: int) -> dict[str, Any]:
    """The processor.

    Args:
        threads: Of torch, when the figure was made.
    """
    return {"cpu": cpu_name(), "cores": os.cpu_count() or 1, "threads": threads}


def commit(package: Path = Path(dp.__file__).parent) -> str | None:
    """The commit that the code of a package is at, or None where it is in no checkout of its own.

    An installed package may lie inside somebody else's repository (a virtual environment in a
    project's folder), whose commit says nothing about it: only one that lies where its own
    repository keeps it has a commit. ``-dirty`` marks code that is not what the commit says:
    changed files, and new ones beside the package's.

    Args:
        package: Folder of the package, ``src/NAME`` of a checkout.
    """
    try:
        root = Path(_git(package, "rev-parse", "--show-toplevel"))
        if package.resolve() != root.resolve() / "src" / package.name:
            return None
        if f'\nname = "{package.name}"\n' not in (root / "pyproject.toml").read_text("utf-8"):
            return None
        found = _git(package, "describe", "--always", "--dirty")
        new = _git(package, "ls-files", "--others", "--exclude-standard", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}-dirty" if new and not found.endswith("-dirty") else found


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
