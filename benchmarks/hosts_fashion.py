"""Every host alone, with smooth pruning, and with rectifying on top, on Fashion-MNIST.

Run ``python benchmarks/hosts_fashion.py [--hosts NAME ...] [--seeds N ...] [--jobs N]``. Each run
is one ``decayprune prune`` on one thread, in a folder of its own under ``--runs``. A finished
folder is skipped and an unfinished one is resumed, so the script may be stopped at any time.
When nothing is left to run, ``benchmarks/results/hosts_fashion.json`` is written from the
``report.json`` of all folders, and the tables in README and cards are written anew from it.

A dense model is trained in every run: its figures are the same for all runs of a seed, which is
checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from decayprune.app.run.methods import VARIANTS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "hosts_fashion.json"
HOSTS = ("dhspg", "hesso", "depgraph", "gate-decorator")
WORDS = [
    *("--dataset", "fashion-mnist", "--model", "resnet8", "--budget", "0.3"),
    *("--epochs", "2", "--prune-epochs", "1", "--finetune-epochs", "1"),
    *("--threads", "1", "--bf16"),
]
KEPT = (
    *("command", "host", "variant", "seed", "accuracy_before", "accuracy_after"),
    *("macs_before", "macs_after", "params_before", "params_after"),
    *("decayed", "released", "removed", "max_rel_error", "seconds"),
)


def run(folder: Path, host: str, variant: str, seed: int) -> None:
    """Run one, or what is left of it."""
    if (folder / "report.json").is_file():
        return
    words = [*WORDS, "--host", host, "--variant", variant, "--seed", str(seed)]
    if (folder / "checkpoint.pt").is_file():
        words = ["--resume"]
    where = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    command = [sys.executable, "-m", "decayprune.app.cli", "prune", *words, "--out", str(where)]
    print(folder.name, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder.name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def collect(folders: list[Path]) -> dict[str, Any]:
    """The figures of all runs, and what they were measured on."""
    reports = [json.loads((f / "report.json").read_text(encoding="utf-8")) for f in folders]
    dense = {(r["seed"], r["accuracy_before"], r["macs_before"]) for r in reports}
    if len(dense) != len({seed for seed, *_ in dense}):
        raise SystemExit(f"Runs of one seed should share their dense model; found {sorted(dense)}.")
    first = reports[0]
    runs = [{key: r[key] for key in KEPT} for r in reports]
    return {"machine": first["machine"], "versions": first["versions"], "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", nargs="+", default=HOSTS, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", default=[0], type=int, metavar="N")
    parser.add_argument("--jobs", default=1, type=int, help="runs at the same time")
    parser.add_argument("--runs", default=Path("runs/hosts-fashion"), type=Path)
    options = parser.parse_args()
    tasks = [
        (options.runs / f"{host}-{variant}-{seed}", host, variant, seed)
        for seed in options.seeds
        for host in options.hosts
        for variant in VARIANTS
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda task: run(*task), tasks))
    found = collect(sorted(f.parent for f in options.runs.glob("*/report.json")))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "docs" / "tables.py")], check=True)
    print(RESULTS)


if __name__ == "__main__":
    main()
