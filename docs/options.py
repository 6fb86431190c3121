"""Write the command's options into the docs: ``python docs/options.py [--check]``.

Between ``<!-- options:COMMAND -->`` and ``<!-- /options -->`` in ``command.md`` stand the options
of that command as its help has them. ``--check`` changes nothing and fails if they are out of date.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import typer

from decayprune.app.cli.app import app

PAGE = Path(__file__).parent / "command.md"
MARK = re.compile(
    r"(?P<begin><!-- options:(?P<name>\w+) -->\n).*?(?P<end><!-- /options -->)", re.DOTALL
)


def options(name: str) -> str:
    """The options of a command as Markdown tables, one for each panel of its help."""
    command: Any = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    panels: dict[str, list[str]] = {}
    for option in command.params:
        if option.param_type_name == "option" and option.name != "help":
            panel = getattr(option, "rich_help_panel", None) or "Options"
            panels.setdefault(panel, []).append(_row(option))
    parts = [f"| {panel} | |\n| --- | --- |\n{''.join(rows)}" for panel, rows in panels.items()]
    return "\n" + "\n".join(parts) + "\n"


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = f" `{option.metavar}`" if option.metavar else ""
    words = (option.help or "").replace("|", r"\|")
    default = option.default
    if isinstance(default, (str, int, float, Path)) and not option.is_flag:
        shown = str(default).replace(str(Path.home()), "~")
        words += f" Default: `{shown}`."
    return f"| {names}{value} | {words} |\n"


def filled(text: str) -> str:
    """Replace the options of every command that the page names."""
    return MARK.sub(lambda mark: f"{mark['begin']}{options(mark['name'])}{mark['end']}", text)


def main() -> None:
    """Rewrite the page, or only look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    new = filled(text)
    if new != text and check:
        raise SystemExit("Out of date: command.md. Run python docs/options.py")
    if new != text:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
