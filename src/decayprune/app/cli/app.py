"""The commands' options, and the small commands: inspect, bench, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import decayprune as dp
from decayprune.app.cli import example
from decayprune.app.cli.errors import readable
from decayprune.app.cli.export import export
from decayprune.app.cli.options import Plain, PlainGroup
from decayprune.app.cli.prune import prune
from decayprune.app.cli.reproduce import reproduce
from decayprune.app.report import Report, write_html
from decayprune.app.run import subject
from decayprune.app.run.runfolder import RunFolder
from decayprune.app.run.settings import DATA_DIR, Settings

app = typer.Typer(
    name="decayprune",
    cls=PlainGroup,
    help="Smooth, self-rectifying structured pruning of PyTorch models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Messages of the library say round_to; what they say can be typed.
    context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},
)
app.command(cls=Plain)(prune)
app.command(cls=Plain)(export)
app.command(cls=Plain)(reproduce)

Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error happened.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(dp.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command(cls=Plain)
def inspect(
    model: Annotated[
        str | None,
        typer.Option(
            help="resnet20 or another of ours, torchvision:NAME, timm:NAME, or pkg.mod:factory; "
            "arguments follow as in NAME?argument=value.",
            metavar="NAME",
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="Sizes of an input, such as 1,3,224,224; of token ids 1,6:long; of a named one "
            "mask=1,6:bool. Once for each input.",
            metavar="SIZES",
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="For one of our models: takes the input from this data set.")
    ] = "digits",
    data: Annotated[
        str | None,
        typer.Option(help="Takes the input from a folder of images or your own pkg.mod:loaders."),
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where files of data sets are.")] = DATA_DIR,
    ignored_layers: Annotated[
        str | None, typer.Option(help="Names of layers to leave alone, by commas.", metavar="NAMES")
    ] = None,
    depth: Annotated[
        bool, typer.Option("--depth", help="Look for residual branches that can leave whole, too.")
    ] = False,
    traceback: Traceback = False,
) -> None:
    """List what of a model can be pruned, what cannot, and why."""
    with readable(traceback):
        own = model is not None and ":" in model
        found: Any
        if sizes and own and not data:
            network, found = subject.named(model or ""), example.inputs(sizes)
        elif sizes:
            raise ValueError(
                "--input goes with --model torchvision:NAME, timm:NAME or pkg.mod:factory, and "
                "without --data, which has inputs."
            )
        elif own and not data:
            raise ValueError(
                f"--model {model} needs an input to be looked at with: give its sizes, such as "
                "--input 1,3,224,224 (several: --input once for each; token ids: --input 1,6:long)."
            )
        else:
            settings = Settings(
                dataset=dataset, data=data, model=model, data_dir=str(data_dir), device="cpu"
            ).resolved()
            source = subject.read_data(settings)
            network = subject.fresh_model(settings, source)
            found = subject.example(settings, source, 1)
        ignored = [name.strip() for name in (ignored_layers or "").split(",") if name.strip()]
        typer.echo(str(dp.inspect(network, found, ignored, depth=depth)))


@app.command(cls=Plain)
def bench(
    folder: Annotated[Path, typer.Argument(help="What prune wrote.")] = Path("decayprune-out"),
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per forward pass.")] = 64,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Time torch.compile, too.")] = False,
    traceback: Traceback = False,
) -> None:
    """Time the compact model of a finished run beside the dense one."""
    with readable(traceback):
        settings = Settings.from_dict(RunFolder(folder).settings())
        torch.set_num_threads(threads or settings.threads or 1)
        source = subject.read_data(settings)
        dense, compact = subject.before_and_after(settings, source, folder)
        batch = subject.example(settings, source, batch_size)
        with Console(stderr=True).status("measuring"):
            found = dp.benchmark(dense, compact, batch, runs=runs, compiled=compiled)
        typer.echo(str(found))


@app.command(cls=Plain)
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
