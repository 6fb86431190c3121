"""The command ``decayprune export``: the compact model of a run as a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import decayprune as dp
from decayprune.app.cli.errors import readable
from decayprune.app.run import subject
from decayprune.app.run.runfolder import RunFolder
from decayprune.app.run.settings import Settings


def export(
    folder: Annotated[Path, typer.Argument(help="What prune wrote.")] = Path("decayprune-out"),
    to: Annotated[
        Path | None,
        typer.Option(
            help="A file that ends in .onnx, .pt2, .pte or .xml [default: FOLDER/model.onnx]"
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Examples per forward pass, to check and to time.")
    ] = 1,
    fixed_batch: Annotated[
        bool, typer.Option("--fixed-batch", help="The file takes batches of that size alone.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime.")] = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error happened.")
    ] = False,
) -> None:
    """Write the compact model of a finished run for another runtime, check it and time it."""
    with readable(traceback):
        settings = Settings.from_dict(RunFolder(folder).settings())
        torch.set_num_threads(threads or settings.threads or 1)
        source = subject.read_data(settings)
        dense, compact = subject.before_and_after(settings, source, folder)
        batch = subject.example(settings, source, batch_size)
        with Console(stderr=True).status("exporting"):
            found = dp.export(
                compact,
                batch,
                to or folder / "model.onnx",
                dynamic_batch=not fixed_batch,
                dense=dense,
            )
        typer.echo(str(found))
