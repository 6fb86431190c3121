"""Keeps the figures of the fault scripts in one file, so that a stopped script can go on.

``results/faults.json`` holds one entry per script: its seed, how many it has done, what it counted.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from decayprune.checkpoint.atomic import write_atomically

RESULTS = Path(__file__).parents[1] / "results" / "faults.json"


def options(description: str, count: int, **choices: tuple[str, ...]) -> argparse.Namespace:
    """What every fault script can be told; choices by name, the first is the default."""
    parser = argparse.ArgumentParser(description=description)
    for name, known in choices.items():
        parser.add_argument(f"--{name}", choices=known, default=known[0])
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--anew", action="store_true", help="forget what was counted before")
    return parser.parse_args()


def begun(name: str, chosen: argparse.Namespace, fresh: dict[str, Any]) -> dict[str, Any]:
    """The figures to go on from: those of an earlier run with this seed, or fresh ones."""
    found = _read().get(name)
    if found is None or chosen.anew or found["seed"] != chosen.seed:
        return {"seed": chosen.seed, "done": 0, "seconds": 0.0} | fresh
    return dict(found)


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write the figures of one script beside those of the others."""
    machine = {"cpu": platform.machine(), "torch": torch.__version__}
    document = _read() | {"machine": machine, name: figures}
    text = json.dumps(document, indent=1) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically({RESULTS: lambda to: to.write_text(text, encoding="utf-8")})


def _read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
