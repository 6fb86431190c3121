"""The commands' options, and the small commands: inspect, bench, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import decayprune as dp
from decayprune.app.cli.errors import readable
from decayprune.app.cli.export import export
from decayprune.app.cli.prune import Typed, prune
from decayprune.app.cli.reproduce import reproduce
from decayprune.app.report import Report, write_html
from decayprune.app.run import own, subject
from decayprune.app.run.runfolder import RunFolder
from decayprune.app.run.settings import DATA_DIR, Settings

app = typer.Typer(
    name="decayprune",
    help="Smooth, self-rectifying structured pruning of PyTorch models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(cls=Typed)(prune)
app.command()(export)
app.command()(reproduce)

Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error happened.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(dp.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--input expects sizes such as 1,3,224,224; found {text!r}.")
    return sizes


@app.command()
def inspect(
    model: Annotated[
        str | None, typer.Option(help="A name (resnet20, ...) or pkg.mod:factory.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--input", help="Sizes of the input, such as 1,3,224,224.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Takes the input from this data set.")] = "digits",
    data: Annotated[
        str | None, typer.Option(help="Takes the input from your own pkg.mod:loaders.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where files of data sets are.")] = DATA_DIR,
    traceback: Traceback = False,
) -> None:
    """List what of a model can be pruned, what cannot, and why."""
    with readable(traceback):
        found: Any
        if shape is not None and model is not None and ":" in model:
            network, found = own.model(model), torch.zeros(_shape(shape))
        elif shape is not None:
            raise ValueError("--input goes with a model of your own: --model pkg.mod:factory.")
        else:
            settings = Settings(
                dataset=dataset, data=data, model=model, data_dir=str(data_dir), device="cpu"
            ).resolved()
            source = subject.read_data(settings)
            network = subject.fresh_model(settings, source)
            found = subject.example(settings, source, 1)
        typer.echo(str(dp.inspect(network, found)))


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(help="What prune wrote.")] = Path("decayprune-out"),
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per forward pass.")] = 64,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    compiled: Annotated[bool, typer.Option(help="Time torch.compile, too.")] = False,
    traceback: Traceback = False,
) -> None:
    """Time the compact model of a finished run beside the dense one."""
    with readable(traceback):
        settings = Settings.from_dict(RunFolder(folder).settings())
        torch.set_num_threads(threads or settings.threads or 1)
        source = subject.read_data(settings)
        dense, compact = (subject.fresh_model(settings, source) for _ in range(2))
        dp.load(folder, compact)
        batch = subject.example(settings, source, batch_size)
        with Console(stderr=True).status("measuring"):
            found = dp.benchmark(dense, compact, batch, runs=runs, compiled=compiled)
        typer.echo(str(found))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="What prune wrote.")] = Path("decayprune-out"),
    traceback: Traceback = False,
) -> None:
    """Write report.html anew from a run's folder, finished or not, and show the table."""
    with readable(traceback):
        found = Report.read(folder)
        page = folder / "report.html"
        write_html(found, page)
        typer.echo(f"{found}\n\n{page}")
