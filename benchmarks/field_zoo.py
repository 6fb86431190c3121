"""What people really prune: models of the field, pruned to 60 % of the MACs and checked.

``python benchmarks/field_zoo.py [names or families ...]``: every model from its configuration, with
random weights and small inputs, in a process of its own with a limit of time and memory: decayed
under a random loss, cut, compared on *other* inputs in evaluation and in training mode, trained a
step further, saved and loaded. One JSON per model is written at once to
``benchmarks/results/field_zoo/``, so that a run that was stopped goes on. ``--again OUTCOME`` takes
those that ended so once more. ``--collect`` gathers them in ``benchmarks/results/field_zoo.json``
and writes ``docs/field-zoo.md``. Needs the frameworks that it prunes (timm, transformers,
ultralytics, torchvision, segmentation-models-pytorch, monai, diffusers) and a system that can fork;
a family without its framework is passed over.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import subprocess
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from field.families import FAMILIES, MODELS
from field.measure import measure
from field.page import document, page

RESULTS = Path(__file__).parent / "results"
EACH = RESULTS / "field_zoo"
PAGE = Path(__file__).parents[1] / "docs" / "field-zoo.md"
MEMORY, FREE = 6.0, 4.0  # GiB that a model may take, and that have to be free before it starts
GIB = 2**20  # in kB, as /proc counts


def run_one(name: str, limit: float) -> dict[str, Any]:
    """Measure a model in a process of its own.

    Args:
        name: Of the model.
        limit: Seconds it may take.
    """
    while available() < FREE:
        time.sleep(5)
    context = multiprocessing.get_context("fork")  # what is imported is imported once
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(name, send))
    began = time.monotonic()
    process.start()
    send.close()
    row: dict[str, Any] = {}
    while not receive.poll(0.5):
        if time.monotonic() - began > limit:
            row = {"outcome": "limit", "words": f"took more than {limit:g} s"}
        elif resident(process.pid) > MEMORY:
            row = {"outcome": "limit", "words": f"took more than {MEMORY:g} GiB"}
        if row:
            process.kill()
            break
    if not row:
        try:
            row = receive.recv()
        except EOFError:
            row = {"outcome": "process", "words": "the process died"}
    process.join()
    return row | {"seconds": round(time.monotonic() - began, 1), "commit": commit()}


def _measure(name: str, send: Connection) -> None:
    """The other process."""
    warnings.simplefilter("ignore")
    send.send(measure(MODELS[name]))


def commit() -> str:
    """What was measured, as far as git knows it."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def available() -> float:
    """Memory of the machine that is free, in GiB; much where the system does not tell."""
    return _kilobytes("/proc/meminfo", "MemAvailable", float("inf")) / GIB


def resident(pid: int | None) -> float:
    """Memory of a process in GiB, 0 where the system does not tell."""
    return _kilobytes(f"/proc/{pid}/status", "VmRSS", 0.0) / GIB


def _kilobytes(path: str, field: str, default: float) -> float:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return default
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{field}:")), default)


def chosen(names: list[str], again: list[str]) -> list[str]:
    """Which models to measure, of the families that are installed.

    Args:
        names: Of models or families; all if empty. A model that is named is measured again.
        again: Outcomes to measure once more.
    """
    found = []
    for family, models in FAMILIES.items():
        own = [name for name in models if not names or {name, family} & set(names)]
        own = [name for name in own if name in names or not _done(name, again)]
        if own and (family == "own nets" or installed(family)):
            found += own
    return found


def _done(name: str, again: list[str]) -> bool:
    path = EACH / f"{name}.json"
    return path.exists() and json.loads(path.read_text())["outcome"] not in again


def installed(package: str) -> bool:
    """Whether a package can be imported; says so if not."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        print(f"{package} is passed over: {error}", flush=True)
        return False
    return True


def collect() -> None:
    """Gather the single results, and lay them out as a page."""
    paths = sorted(EACH.glob("*.json"))
    found = document({p.name.removesuffix(".json"): json.loads(p.read_text()) for p in paths})
    (RESULTS / "field_zoo.json").write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="models or families; all by default")
    parser.add_argument("--collect", action="store_true", help="only gather what is there")
    parser.add_argument("--again", action="append", default=[], help="measure those that ended so")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    EACH.mkdir(parents=True, exist_ok=True)
    if options.collect:
        collect()
        return
    for name in chosen(options.names, options.again):
        row = run_one(name, options.limit)
        (EACH / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
        print(name, row["outcome"], row.get("words", "")[:200], flush=True)


if __name__ == "__main__":
    main()
