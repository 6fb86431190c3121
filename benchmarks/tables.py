"""Every table and picture of the study and the pretrained models, from the runs that are committed.

    python benchmarks/tables.py     # benchmarks/**/*.json -> tables, pictures, docs, README

Nothing is run. It needs ``pip install 'decayprune[bench,cli]'``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WRITERS = (  # each reads what those before it have written
    ("benchmarks/paper/study.py", "tables"),
    ("benchmarks/pretrained/tables.py",),
    ("docs/tables.py",),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    for script, *words in WRITERS:
        print(f"python {script} {' '.join(words)}".rstrip(), flush=True)
        subprocess.run([sys.executable, str(ROOT / script), *words], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
