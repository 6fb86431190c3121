"""Writing files so that a crash or a full disk loses nothing: beside, to the disk, then renamed.

Everything that leaves files behind uses this: checkpoints, run folders, reports. What a killed
process leaves is one file of the same name with ``.part`` at its end, which the next write
replaces.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path


def unfinished(name: str) -> str:
    """The name of a file while it is written, by its final name."""
    return f"{name}.part"


def write_atomically(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files beside their final names, all of them to the disk, and only then rename.

    Args:
        files: Final names, and what writes each of them to the path that it is given.

    Raises:
        OSError: The disk is full or a folder cannot be written; the old files are as they were.
    """
    beside = {path: path.with_name(unfinished(path.name)) for path in files}
    try:
        for path, write in files.items():
            write(beside[path])
            with beside[path].open("rb+") as file:
                os.fsync(file.fileno())
        for path, written in beside.items():
            written.replace(path)
    finally:
        for written in beside.values():
            _discard(written)


def _discard(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        return  # renamed already, or never made
