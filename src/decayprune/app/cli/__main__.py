"""``python -m decayprune.app.cli``: the same as the command."""

from decayprune.app.cli import main

main()
