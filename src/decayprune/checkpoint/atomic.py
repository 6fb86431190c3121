"""Writing files so that a crash or a full disk loses nothing: beside, to the disk, then renamed.

Everything that leaves files behind uses this: checkpoints, run folders, reports. Several processes
may write into one folder; they take turns, so that files which belong together stay together. What
a killed process leaves is a file whose name ends in ``.part``; the next write removes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has other locks; there one process at a time has to write
    fcntl = None  # type: ignore[assignment]


def leftovers(path: Path) -> list[Path]:
    """What killed processes left of a file.

    Args:
        path: Its final name.
    """
    return [beside for beside in path.parent.glob("*.part") if _belongs(beside.name, path.name)]


def _belongs(part: str, name: str) -> bool:
    middle = part.removeprefix(name).removesuffix(".part")
    return part.startswith(f"{name}.") and "." not in middle.lstrip(".")


def write_atomically(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files beside their final names, all of them to the disk, and only then rename.

    Args:
        files: Final names, and what writes each of them to the path that it is given, in order.

    Raises:
        OSError: The disk is full, a folder cannot be written, or a name is taken by something that
            is no file; the old files are as they were.
    """
    with ExitStack() as stack:
        for folder in sorted({path.parent for path in files}):
            if stack.enter_context(_alone(folder)):
                for path in files:
                    if path.parent == folder:
                        _discard(*leftovers(path))
        beside: dict[Path, Path] = {}
        try:
            for path, write in files.items():
                check_regular(path)
                beside[path] = _fresh(path)
                write(beside[path])
                with beside[path].open("rb+") as file:
                    os.fsync(file.fileno())
            for path, written in beside.items():
                written.replace(path)
        finally:
            _discard(*beside.values())


def check_regular(path: Path) -> None:
    """Raise if a name is taken by a folder, a pipe or a device.

    Args:
        path: A name; nobody needs to have it.

    Raises:
        OSError: It is.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory; give the name of a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is no regular file; give the name of a file", str(path))


def _fresh(path: Path) -> Path:
    """A new, empty file beside a name: one that nobody else has, and no link to elsewhere."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return beside


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Let one process at a time write into a folder; says whether that is certain.

    The lock is on the folder itself and goes with the process, so that none is ever left behind.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            locked = True
        except OSError:  # some network file systems have no locks
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _discard(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):  # renamed already, or never made
            path.unlink()
