"""Repeats of a timed measurement in one file: a verdict stands if several runs of it agree."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def load() -> float:
    """Mean number of processes that ran or waited in the last minute."""
    return round(os.getloadavg()[0], 1)


def add(path: Path, machine: dict[str, Any], repeat: dict[str, Any]) -> None:
    """Add a repeat to a file of results. Those of another machine, or of other versions, go.

    Args:
        path: Of the file.
        machine: What all repeats of the file share.
        repeat: What was measured, and at what load.
    """
    found = json.loads(path.read_text()) if path.is_file() else {}
    earlier = found.get("repeats", []) if found.get("machine") == machine else []
    result = {"machine": machine, "repeats": [*earlier, repeat]}
    path.write_text(json.dumps(result, indent=1) + "\n")
