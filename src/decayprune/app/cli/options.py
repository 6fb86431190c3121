"""The options of ``decayprune prune``, made from the record of a run's settings.

:class:`~decayprune.app.run.settings.Settings` says what there is to choose and explains it; here it
becomes what Typer understands. Options of the command alone (where to write, when to save) stand
below. A file given with ``--config`` sets the same options by the same names; what is typed wins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from decayprune.app.run.settings import WHERE, Settings

TYPED = "decayprune.typed"
"""Where a context keeps the words as they were typed."""

F = TypeVar("F", bound=Callable[..., None])


def share(text: str | float) -> float:
    """Read a share: ``50%``, ``50 %`` or ``0.5``.

    >>> share("50%"), share("0.5")
    (0.5, 0.5)
    """
    words = str(text).strip()
    try:
        return float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"expected a share such as 50% or 0.5; found {words!r}.") from None


def _plain(command: Any) -> None:
    for option in command.params:
        if getattr(option, "is_flag", False):
            option.metavar = ""


def _plain_help(option: Any) -> Any:
    if option is not None:
        option.metavar = ""
    return option


class Plain(TyperCommand):
    """A command whose flags are not said to take a <bool>, and that remembers its words."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _plain(self)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``, as every other flag."""
        return _plain_help(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and keep the words."""
        ctx.meta[TYPED] = list(args)
        return super().parse_args(ctx, args)


class PlainGroup(TyperGroup):
    """The commands, whose own flags are not said to take a <bool> either."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _plain(self)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``, as every other flag."""
        return _plain_help(super().get_help_option(ctx))


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take what a TOML file says as the defaults of the other options.

    Raises:
        typer.BadParameter: It cannot be read, or names what is no option.
    """
    if path is None or ctx.resilient_parsing:
        return path
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise typer.BadParameter(f"{path} is no TOML file ({error}).") from error
    known = {option.name for option in ctx.command.params} - {"config", "help"}
    given = {name.replace("-", "_"): _word(value) for name, value in found.items()}
    odd = sorted(given.keys() - known)
    if odd:
        names = ", ".join(sorted(name.replace("_", "-") for name in known if name))
        raise typer.BadParameter(f"{path} sets {', '.join(odd)}; expected options: {names}.")
    ctx.default_map = {**(ctx.default_map or {}), **given}
    return path


def _word(value: Any) -> Any:
    """A value as it would be typed: a list stands for names separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def flag(words: str, name: str) -> Any:
    """A switch, for an annotation."""
    return typer.Option(name, help=words, rich_help_panel=WHERE)


OWN: dict[str, tuple[Any, Any]] = {
    "out": (
        Annotated[Path, typer.Option(help="Folder for the results.", rich_help_panel=WHERE)],
        Path("decayprune-out"),
    ),
    "json": (
        Annotated[
            Path | None,
            typer.Option(help="Also write the report to this file.", rich_help_panel=WHERE),
        ],
        None,
    ),
    "config": (
        Annotated[
            Path | None,
            typer.Option(
                help="A TOML file with options, such as budget = '50%'; what is typed wins.",
                rich_help_panel=WHERE,
                callback=read_config,
                is_eager=True,
            ),
        ],
        None,
    ),
    "resume": (Annotated[bool, flag("Go on with the run in --out.", "--resume")], False),
    "overwrite": (Annotated[bool, flag("Replace the run in --out.", "--overwrite")], False),
    "save_every": (
        Annotated[float, typer.Option(help="Seconds between checkpoints.", rich_help_panel=WHERE)],
        30.0,
    ),
    "traceback": (Annotated[bool, flag("Show where an error happened.", "--traceback")], False),
}
"""Options of the command that are no choice of the run: annotation and default."""


def _of_settings() -> dict[str, tuple[Any, Any]]:
    hints = get_type_hints(Settings)
    found = {}
    for field in fields(Settings):
        words = field.metadata
        more: dict[str, Any] = {"metavar": words["metavar"]} if words["metavar"] else {}
        if words["metavar"] == "SHARE":
            more["parser"] = share
        option = typer.Option(help=words["help"], rich_help_panel=words["panel"], **more)
        default = None if field.default is MISSING else field.default
        found[field.name] = (Annotated[hints[field.name], option], default)
    return found


def with_options(command: F) -> F:
    """Give a function of (ctx, **options) the options as its signature, for Typer to read."""
    options = _of_settings() | OWN
    parameters = [Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    parameters += [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in options.items()
    ]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def was_given(ctx: typer.Context, name: str) -> bool:
    """Whether an option was typed or stands in the file of ``--config``."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
