"""Whether a wheel holds what is not Python, and nothing that is not ours.

python .ci/check_wheel.py dist/*.whl
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "decayprune"


def check(wheel: Path) -> None:
    """Raise unless the wheel holds all files of the package, and a README without loose ends."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    ours = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in names if ".dist-info/" not in name}
    assert held == ours, f"{wheel.name} and {PACKAGE} differ in {sorted(held ^ ours)}."
    assert "decayprune/py.typed" in held
    assert any(name.endswith(".html") for name in held), "The report has no templates."
    loose = re.findall(r"\]\((?!https?://|#)[^)]*\)", text)
    assert not loose, f"The description in {wheel.name} has relative links: {loose}."


if __name__ == "__main__":
    check(Path(sys.argv[1]))
