"""``decayprune prune``: the main job, from the options to the table."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperCommand

from decayprune.app.cli.errors import readable
from decayprune.app.cli.progress import shown
from decayprune.app.report import Report, write_html
from decayprune.app.run.data import DATASETS
from decayprune.app.run.methods import HOSTS
from decayprune.app.run.models import MODELS
from decayprune.app.run.run import Interrupted, Run
from decayprune.app.run.runfolder import RunFolder
from decayprune.app.run.settings import DATA_DIR, Settings
from decayprune.checkpoint.atomic import write_atomically

TYPED = "decayprune.typed"
"""Where a context keeps the words as they were typed."""

_WHAT, _HOW, _WHERE = "What is pruned", "How", "Where and when"


class Typed(TyperCommand):
    """A command that remembers the words it was called with."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and keep the words."""
        ctx.meta[TYPED] = list(args)
        return super().parse_args(ctx, args)


def prune(
    ctx: typer.Context,
    dataset: Annotated[
        str, typer.Option(help=f"One of {', '.join(DATASETS)}.", rich_help_panel=_WHAT)
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(MODELS)}; or pkg.mod:factory, your function that returns a "
            "model. Default: what suits the data set.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="pkg.mod:loaders, your function that returns (train_loader, test_loader).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Fraction of the MACs that remains.", rich_help_panel=_HOW)
    ] = 0.5,
    params_budget: Annotated[
        float | None,
        typer.Option(help="Fraction of the parameters that remains.", rich_help_panel=_HOW),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Dense training first; 0 for a model that is trained already.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    prune_epochs: Annotated[
        int | None,
        typer.Option(help="Training while structures decay.", rich_help_panel=_HOW),
    ] = None,
    finetune_epochs: Annotated[
        int | None,
        typer.Option(help="Training of the compact model.", rich_help_panel=_HOW),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step.", rich_help_panel=_HOW)
    ] = None,
    lr: Annotated[
        float,
        typer.Option(help="Peak learning rate; half of it from pruning on.", rich_help_panel=_HOW),
    ] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.", rich_help_panel=_HOW)] = 5e-4,
    decay_steps: Annotated[
        int | None,
        typer.Option(help="Steps in which a structure decays.", rich_help_panel=_HOW),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Instalments in which the budget is reached.", rich_help_panel=_HOW),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help=f"The pruning method that selects: {', '.join(HOSTS)}.", rich_help_panel=_HOW
        ),
    ] = "default",
    variant: Annotated[
        str,
        typer.Option(
            help="alone: the host as published; sp: what it picks decays smoothly; sp_sr: and is "
            "released if training resists.",
            rich_help_panel=_HOW,
        ),
    ] = "sp_sr",
    importance: Annotated[
        str,
        typer.Option(
            help="Of the default host: magnitude, magnitude_l1, taylor, bn_scale or random.",
            rich_help_panel=_HOW,
        ),
    ] = "magnitude",
    seed: Annotated[
        int, typer.Option(help="What everything random follows from.", rich_help_panel=_HOW)
    ] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for the results.", rich_help_panel=_WHERE)
    ] = Path("decayprune-out"),
    json: Annotated[
        Path | None,
        typer.Option(help="Also write the report to this file.", rich_help_panel=_WHERE),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=_WHERE),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the run in --out.", rich_help_panel=_WHERE),
    ] = False,
    data_dir: Annotated[
        Path, typer.Option(help="Where files of data sets are.", rich_help_panel=_WHERE)
    ] = DATA_DIR,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch.", rich_help_panel=_WHERE)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", rich_help_panel=_WHERE)] = None,
    bf16: Annotated[
        bool | None,
        typer.Option(
            "--bf16/--no-bf16",
            help="Forward passes in bfloat16; by default where the processor is made for it.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    save_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints.", rich_help_panel=_WHERE)
    ] = 30.0,
    traceback: Annotated[
        bool,
        typer.Option("--traceback", help="Show where an error happened.", rich_help_panel=_WHERE),
    ] = False,
) -> None:
    """Train, decay-prune, cut, fine-tune, check, save and report: the main job.

    Without any option: a small ResNet on scikit-learn's digits, to half of its MACs, in less than a
    minute and a half on two CPU cores. With --dataset fashion-mnist: a ResNet-20 on 60,000 images,
    in about a quarter of an hour.
    """
    console = Console(highlight=False)
    folder = RunFolder(out)
    with readable(traceback):
        settings = _settings(ctx, folder, resume=resume, overwrite=overwrite)
        if json is not None and not json.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"--json expects a file in a folder that exists; there is no folder {json.parent}."
            )
        if not (resume and folder.finished):
            command = shlex.join(["decayprune", "prune", *ctx.meta[TYPED]])
            _run(console, folder, settings, command, resume=resume, save_every=save_every)
        _show(console, folder, json)


def _settings(ctx: typer.Context, folder: RunFolder, *, resume: bool, overwrite: bool) -> Settings:
    """The options; on resume those that the run began with."""
    given = {
        field.name: _plain(ctx.params[field.name])
        for field in fields(Settings)
        if not resume or _was_given(ctx, field.name)
    }
    if not resume:
        if folder.unfinished and not overwrite:
            raise ValueError(
                f"{folder.path} holds a run that has not finished. Go on with it: {_again(folder)}"
                "; or give another --out, or drop it with --overwrite."
            )
        if folder.finished and not overwrite:
            raise ValueError(
                f"{folder.path} holds a finished run. Keep it and give another --out, or replace "
                "it with --overwrite."
            )
        return Settings(**given).resolved()
    kept = Settings.from_dict(folder.settings())
    asked = Settings(**given)
    for name in given:
        value = getattr(asked, name)
        if value != getattr(kept, name):
            raise ValueError(
                f"The run in {folder.path} began with --{name.replace('_', '-')} "
                f"{getattr(kept, name)}, and goes on only with that; found {value}. Leave the "
                "option out, or start another run in another --out."
            )
    return kept


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _again(folder: RunFolder) -> str:
    words = ["decayprune", "prune", "--resume"]
    return shlex.join([*words, "--out", str(folder.path)])


def _run(
    console: Console,
    folder: RunFolder,
    settings: Settings,
    command: str,
    *,
    resume: bool,
    save_every: float,
) -> None:
    console.print(_what(settings), soft_wrap=True)
    try:
        with _stop_signals(console) as asked, shown(console) as watch:
            run = Run(
                settings,
                folder,
                watch,
                command=command,
                save_every=save_every,
                stop=lambda: bool(asked),
            )
            if resume:
                run.resume()
            else:
                run.start()
    except Interrupted:
        _stopped(console, folder, "Stopped, nothing is lost.")
    except KeyboardInterrupt:
        _stopped(console, folder, "Stopped at once.")


def _what(settings: Settings) -> str:
    """One line: what is about to happen to what."""
    params = settings.params_budget
    also = f" and {params:.0%} of its parameters" if params is not None else ""
    threads = f"{settings.threads} thread{'' if settings.threads == 1 else 's'}"
    host = "" if settings.host == "default" else f", host {settings.host}"
    return (
        f"{settings.model} on {settings.data or settings.dataset}, to {settings.budget:.0%} of its "
        f"MACs{also}{host}, {settings.variant}; seed {settings.seed}, {threads}, {settings.device}"
    )


def _stopped(console: Console, folder: RunFolder, words: str) -> NoReturn:
    go_on = f" Go on with:\n  {_again(folder)}" if folder.unfinished else ""
    console.print(f"{words}{go_on}", soft_wrap=True)
    raise typer.Exit(130)


@contextmanager
def _stop_signals(console: Console) -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM while the run goes on; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print("Stopping after this step (once more: at once) ...")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(console: Console, folder: RunFolder, json: Path | None) -> None:
    """The table, and where everything is."""
    report = Report.read(folder.path)
    page = folder.path / "report.html"
    write_html(report, page)
    if json is not None:
        text = (folder.path / "report.json").read_text(encoding="utf-8")
        write_atomically({json: lambda to: to.write_text(text, encoding="utf-8")})
    files = [
        ("the compact model", f"{folder.path / 'model.safetensors'} and structure.json"),
        ("the report", str(page)),
        ("its figures", str(json or folder.path / "report.json")),
    ]
    where = "\n".join(f"{name:18} {place}" for name, place in files)
    console.print(f"\n{report}\n\n{where}", soft_wrap=True, markup=False)
