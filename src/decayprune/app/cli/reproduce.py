"""``decayprune reproduce``: the paper's own tasks, and what it is worth to a trained net."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown

from decayprune.app.cli.errors import readable
from decayprune.app.pretrained import recipe as pretrained
from decayprune.app.run.methods import VARIANTS
from decayprune.app.run.settings import DATA_DIR
from decayprune.app.study import figures, grid, paper
from decayprune.app.study.trial import Trial


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join([*pretrained.RECIPES, *paper.RECIPES])}.", metavar="RECIPE"
        ),
    ],
    data_dir: Annotated[Path, typer.Option(help="Where files of data sets are.")] = DATA_DIR,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, each with all variants.")] = 5,
    out: Annotated[Path, typer.Option(help="Where runs are kept; what exists is skipped.")] = Path(
        "decayprune-reproduce"
    ),
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Most steps of each phase, to try it out.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Most images of each split, to try it out.")
    ] = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error happened.")
    ] = False,
) -> None:
    """Run a published configuration: the host alone, +SP, and +SP+SR, over several seeds.

    Or compare, on a pretrained network at a quarter of its MACs, ways to make it smaller.
    """
    with readable(traceback):
        if threads:
            torch.set_num_threads(threads)
        if name in pretrained.RECIPES:
            if processes > 1 or limit:
                raise ValueError(
                    f"{name} takes no --processes and no --limit; --steps and --seeds shorten it."
                )
            _compare(pretrained.RECIPES[name], out / name, seeds, steps)
            return
        found = paper.recipe(name, others=pretrained.RECIPES)
        base = found.trial.with_(steps=steps, limit=limit)
        trials = [
            base.with_(seed=seed, variant=variant) for seed in range(seeds) for variant in VARIANTS
        ]
        console = Console(stderr=True, highlight=False)
        failed = grid.run(trials, out / name, data_dir, processes=processes, say=console.print)
        Console().print(Markdown(_summary(out / name, trials)))
        _published(found)
        if failed:
            reasons = "\n".join(f"  {trial.name}: {reason}" for trial, reason in failed)
            raise ValueError(f"{len(failed)} of {len(trials)} runs failed:\n{reasons}")


def _compare(recipe: pretrained.Recipe, folder: Path, seeds: int, steps: int | None) -> None:
    """Every arm of a pretrained network, and the table of all."""
    console = Console(stderr=True, highlight=False)
    wanted = pretrained.runs(recipe, seeds, steps)
    table = pretrained.markdown(pretrained.run_all(recipe, wanted, folder, console.print))
    (folder / "summary.md").write_text(table, encoding="utf-8")
    Console().print(Markdown(table))


def _summary(folder: Path, trials: Sequence[Trial]) -> str:
    """Write the summary of the runs of these trials; its table."""
    known = [trial.to_dict() for trial in trials]
    rows = figures.summary([run for run in grid.read(folder) if run["trial"] in known])
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    table = figures.markdown(rows)
    (folder / "summary.md").write_text(table, encoding="utf-8")
    return table


def _published(found: paper.Recipe) -> None:
    if found.published is not None:
        pairs = zip(("host alone", "+SP", "+SP+SR"), found.published, strict=True)
        said = "; ".join(f"{label} {top} at {macs} % of the FLOPs" for label, (macs, top) in pairs)
        typer.echo(f"The paper (single runs): {said}.")
    if found.departures:
        typer.echo(f"Departures from the published runs: {'; '.join(found.departures)}.")
