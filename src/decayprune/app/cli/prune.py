"""``decayprune prune``: the main job, from the options to the table."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.console import Console

from decayprune.app.cli.errors import readable
from decayprune.app.cli.options import TYPED, was_given, with_options
from decayprune.app.cli.progress import shown
from decayprune.app.report import Report, write_html
from decayprune.app.run import checks
from decayprune.app.run.run import Interrupted, Run
from decayprune.app.run.runfolder import RunFolder
from decayprune.app.run.settings import Settings
from decayprune.checkpoint.atomic import write_atomically


@with_options
def prune(ctx: typer.Context, **options: Any) -> None:
    """Train, decay-prune, cut, fine-tune, check, save and report: the main job.

    Your own trained model: --model torchvision:resnet50 --weights my.pt --data ./images

    Without any option: a small ResNet on scikit-learn's digits, to half of its MACs, in less than a
    minute and a half on two CPU cores. With --dataset fashion-mnist: a ResNet-20 on 60,000 images,
    in about a quarter of an hour.
    """
    console = Console(highlight=False)
    folder, json, resume = RunFolder(options["out"]), options["json"], options["resume"]
    with readable(options["traceback"]):
        settings = _settings(ctx, folder, resume=resume, overwrite=options["overwrite"])
        if json is not None and not json.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"--json expects a file in a folder that exists; there is no folder {json.parent}."
            )
        if not (resume and folder.finished):
            command = shlex.join(["decayprune", "prune", *ctx.meta[TYPED]])
            _run(console, folder, settings, command, options)
        _show(console, folder, json)


def _settings(ctx: typer.Context, folder: RunFolder, *, resume: bool, overwrite: bool) -> Settings:
    """The options; on resume those that the run began with."""
    given = {
        field.name: ctx.params[field.name]
        for field in fields(Settings)
        if not resume or was_given(ctx, field.name)
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
                f"The run in {folder.path} began with {checks.named(name)} "
                f"{getattr(kept, name)}, and goes on only with that; found {value}. Leave the "
                "option out, or start another run in another --out."
            )
    return kept


def _again(folder: RunFolder) -> str:
    words = ["decayprune", "prune", "--resume"]
    return shlex.join([*words, "--out", str(folder.path)])


def _run(
    console: Console,
    folder: RunFolder,
    settings: Settings,
    command: str,
    options: dict[str, Any],
) -> None:
    try:
        with _stop_signals(console) as asked, shown(console) as watch:
            run = Run(
                settings,
                folder,
                watch,
                command=command,
                save_every=options["save_every"],
                stop=lambda: bool(asked),
            )
            if options["resume"]:
                watch.note(_what(settings))
                run.resume()
            else:
                run.check()
                watch.note(_what(settings))
                run.start()
    except Interrupted:
        _stopped(console, folder, "Stopped, nothing is lost.")
    except KeyboardInterrupt:
        _stopped(console, folder, "Stopped at once.")


def _what(settings: Settings) -> str:
    """One line: what is about to happen to what."""
    names = {
        "macs": "MACs",
        "params": "parameters",
        "latency": "latency",
        "depth": "residual branches",
    }
    bounds = " and ".join(f"{s:.0%} of its {names[n]}" for n, s in settings.budgets.items())
    weights = f" with {settings.weights}" if settings.weights else ""
    threads = f"{settings.threads} thread{'' if settings.threads == 1 else 's'}"
    host = "" if settings.host == "default" else f", host {settings.host}"
    return (
        f"{settings.model}{weights} on {settings.data or settings.dataset}, to {bounds}{host}, "
        f"{settings.variant}; seed {settings.seed}, {threads}, {settings.device}"
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
