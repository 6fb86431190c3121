"""The hosts in a better setting than that of their authors' scripts, and with a longer recovery.

    python benchmarks/paper/settings.py --cell local --processes 2      # stop and rerun at will

What decays and releases add to a host is worth as much as the host alone is at its best. DepGraph's
global comparison starves layers; the same share of every layer, Torch-Pruning's own default, does
not. OTOv2 leaves single channels; where widths stay multiples of eight (``group_divisible``, chosen
for the host alone on held-out images, ``results/oto_divisible.jsonl``) it does not. Four times the
recovery gives every host time to mend what it cut. Two controls stand beside them: our own
selection cut at once, and a network of the final shape from scratch for all steps. Our own pruner
stands in its best setting as well, calibrated on sixteen batches, and with sixteen times the
recovery, too; and without a dense network, cut early in training from scratch.
``study.py tables`` makes the tables, once something has run.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from dataclasses import replace
from pathlib import Path

import torch
from goals import HARD, SEEDS
from trials import DENSE, OF_HOST, PRUNING, RESNET, VGG

from decayprune.app.run.settings import DATA_DIR
from decayprune.app.study import figures, grid
from decayprune.app.study.trial import Trial

FOLDER = Path(__file__).resolve().parent / "results" / "settings"
LONGER, LONGEST = 4, 16
MULTIPLE = 8
EARLY = 100
AS_MUCH = EARLY + round((3432 * HARD - EARLY) / HARD)
"""Steps for the compute that the final shape takes in 3,432, eight epochs."""
PAIR = ("alone", "sp_sr")
TITLES = {
    "local": "DepGraph with the same share of every layer",
    "divisible": f"OTOv2 with multiples of {MULTIPLE}",
    "divisible_longer": f"OTOv2 with multiples of {MULTIPLE}, {LONGER} times the recovery",
    "longer": f"{LONGER} times the recovery",
    "calibrated": "Our own selection, calibrated",
    "calibrated_longer": f"Our own selection, calibrated, {LONGER} times the recovery",
    "calibrated_longest": f"Our own selection, calibrated, {LONGEST} times the recovery",
    "early": f"Our own selection, calibrated, cut at step {EARLY} of training from scratch",
}


def cells(seed: int) -> dict[str, list[Trial]]:
    """The trials of a seed by what is asked."""
    local = {"host": "depgraph", "options": {"global_pruning": False}}
    budgets = (0.25, HARD)
    longer = RESNET.with_(training=replace(PRUNING, epochs=LONGER), budget=HARD)
    otov2 = OF_HOST["dhspg"]
    divisible = {"host": "dhspg", "options": otov2["options"] | {"group_divisible": MULTIPLE}}
    hosts = {"dhspg": otov2, "depgraph": local, "default": {}}
    found = {
        "local": [
            net.with_(**local, budget=budget, variant=variant)
            for net, budget, variant in itertools.product((VGG, RESNET), budgets, PAIR)
        ],
        "divisible": [
            RESNET.with_(**divisible, budget=budget, variant=variant)
            for budget, variant in itertools.product(budgets, PAIR)
        ],
        "divisible_longer": [longer.with_(**divisible, variant=variant) for variant in PAIR],
        "longer": [
            longer.with_(**{"host": host, **options}, variant=variant)
            for (host, options), variant in itertools.product(hosts.items(), PAIR)
        ]
        + [longer.with_(variant="small")],
    }
    calibrated = longer.with_(options={"calibrate": 16})
    against_small = ("alone", "small")
    for name, epochs, variants in (
        ("calibrated", 1, (*against_small, "sp_sr")),
        ("calibrated_longer", LONGER, (*against_small, "sp_sr")),
        ("calibrated_longest", LONGEST, against_small),
    ):
        training = replace(PRUNING, epochs=epochs)
        found[name] = [calibrated.with_(training=training, variant=one) for one in variants]
    from_scratch = replace(DENSE, epochs=8, warm=EARLY)
    share = (EARLY + 0.5) / AS_MUCH  # of which the step is the floor
    early = calibrated.with_(dense=None, training=from_scratch, steps=AS_MUCH, start=share)
    found["early"] = [early.with_(variant=one) for one in against_small]
    return {name: [one.with_(seed=seed) for one in trials] for name, trials in found.items()}


def section() -> list[str]:
    """Gains over the host alone in the same setting; nothing as long as nothing has run."""
    runs = grid.read(FOLDER)
    if not runs:
        return []
    text = ["### In a better setting", ""]
    text += ["Against the host alone in the same setting (`settings.py`):", ""]
    for name, title in TITLES.items():
        wanted = {trial.name for seed in range(SEEDS) for trial in cells(seed)[name]}
        rows = figures.summary(run for run in runs if Trial.from_dict(run["trial"]).name in wanted)
        text += [f"#### {title}", "", figures.markdown(rows) if rows else "Not run yet.\n"]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cell", choices=tuple(TITLES), action="append")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="the first so many only")
    parser.add_argument("--model", action="append")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [
        trial
        for seed in range(given.seeds)
        for cell in given.cell or TITLES
        for trial in cells(seed)[cell]
        if trial.model in (given.model or (trial.model,))
    ]
    say = functools.partial(print, flush=True)
    for trial, reason in grid.run(
        chosen, FOLDER, given.data_dir, processes=given.processes, say=say
    ):
        print(f"FAILED {trial.name}: {reason}")


if __name__ == "__main__":
    main()
