"""``python -m decayprune.cli``: the same as the command."""

from decayprune.cli import main

main()
