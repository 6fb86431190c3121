"""The command ``decayprune``: prune, inspect, bench, export, report.

Each command is a thin skin: options in, one call, a table out. What may go wrong is told in one
message with what to do about it and exit code 2; ``--traceback`` shows where it happened.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from decayprune.app.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"The command needs {error.name}, which is not installed. "
            "Install it with: pip install 'decayprune[cli]'\n"
        )
        sys.exit(2)
    app()
