"""Which layers lose how much: scopes of our own selection, on two networks and three budgets.

    python benchmarks/paper/scopes.py run --seeds 100-103     # stop and rerun at will

Held-out training images, as everything that is chosen (``probe.py`` says how a run is made).
``study.py tables`` makes the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from goals import BUDGETS, MODELS
from pages import fill
from probe import Probe, go, interval, numbers

from decayprune.app.study.figures import paired, start

HERE = Path(__file__).resolve().parent
RUNS = HERE / "results" / "scopes.jsonl"
SCOPES = {"width": [], "global": ["pruner.scope=global"]}
"""The default, and what it is compared with."""


def probes() -> Iterator[tuple[str, float, str, Probe]]:
    """Network, budget, scope, and the run to make."""
    for model, budget, scope in itertools.product(MODELS, BUDGETS, SCOPES):
        changes = [f"model={model}", f"budget={budget}", *SCOPES[scope]]
        yield model, budget, scope, Probe().with_(changes)


Cells = dict[tuple[str, float], dict[str, dict[Any, float]]]
"""Network and budget -> scope -> seed, or what a run began with -> accuracy in percent."""


def held_out() -> Cells:
    """Of the runs of this file."""
    found: dict[str, dict[int, float]] = {}
    for line in RUNS.read_text().splitlines():
        run = json.loads(line)
        key = json.dumps(run["settings"], sort_keys=True)
        found.setdefault(key, {})[run["seed"]] = run["accuracy"]
    cells: Cells = {}
    for model, budget, scope, probe in probes():
        key = json.dumps(vars(probe), sort_keys=True)
        cells.setdefault((model, budget), {})[scope] = found.get(key, {})
    return cells


def on_test_images(
    study: Iterable[Mapping[str, Any]], by_norms: Iterable[Mapping[str, Any]]
) -> Cells:
    """Of +SP+SR in the study, and in its runs before the default was changed."""
    cells: Cells = {(m, b): {s: {} for s in SCOPES} for m in MODELS for b in BUDGETS}
    for scope, runs in (("width", study), ("global", by_norms)):
        for run in runs:
            trial = run["trial"]
            key = (trial["model"], trial["budget"])
            if (trial["host"], trial["variant"]) == ("default", "sp_sr") and key in cells:
                cells[key][scope][start(run)] = 100 * run["test_accuracy"]
    return cells


def table(cells: Cells) -> str:
    """Accuracies and gains, a line per network and budget."""
    lines = [
        '| network, MACs left | `"global"` | `"width"` | gain (95 %) | seeds won |',
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for (model, budget), scores in cells.items():
        worth = paired(scores["width"], scores["global"])
        if worth is None:
            continue
        old, new = (interval(list(scores[s].values()))[0] for s in ("global", "width"))
        lines.append(
            f"| {MODELS[model]}, {100 * budget:g} % | {old:.2f} | {new:.2f} | {worth.words} "
            f"| {worth.won} of {worth.pairs} |"
        )
    return "\n".join(lines) + "\n"


def write(page: Path) -> None:
    """Make the table of a page from the runs."""
    fill(page, "scopes", table(held_out()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("do", choices=("run",))
    parser.add_argument("--seeds", type=numbers, default=[100, 101, 102, 103])
    parser.add_argument("--model", choices=tuple(MODELS), action="append")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed, (model, budget, scope, probe) in itertools.product(given.seeds, probes()):
        if model in (given.model or MODELS):
            row = go(probe, seed, RUNS, cached=True)
            print(f"{row['accuracy']:.2f}  seed {seed}  {model} {budget} {scope}", flush=True)


if __name__ == "__main__":
    main()
