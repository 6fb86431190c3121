import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from decayprune.checkpoint.atomic import write_atomically


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")

    def dies(beside: Path) -> None:
        beside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically({tmp_path / "a": lambda to: to.write_text("new"), tmp_path / "b": dies})
    assert contents(tmp_path) == {"a": "old", "b": "old"}
    write_atomically({tmp_path / name: lambda to: to.write_text("new") for name in ("a", "b")})
    assert contents(tmp_path) == {"a": "new", "b": "new"}


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    for left in ("a.part", "a.0123abcd.part"):
        (tmp_path / left).write_text("a longer text that was never finished")
    (tmp_path / "a.b.0123abcd.part").write_text("of another file")
    write_atomically({tmp_path / "a": lambda to: to.write_text("new")})
    assert contents(tmp_path) == {"a": "new", "a.b.0123abcd.part": "of another file"}


def test_the_disk_has_the_content_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("os.fsync", lambda descriptor: seen.append(contents(tmp_path)))
    write_atomically({tmp_path / "a": lambda to: to.write_text("new")})
    ((name, text),) = seen[0].items()
    assert re.fullmatch(r"a\.[0-9a-f]{8}\.part", name)
    assert text == "new"


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "a.part").symlink_to(precious)
    write_atomically({tmp_path / "a": lambda to: to.write_text("new")})
    assert contents(tmp_path) == {"a": "new", "precious": "mine"}


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    target.mkdir() if kind == "folder" else os.mkfifo(target)
    with pytest.raises(OSError, match="give the name of a file"):
        write_atomically({target: lambda to: to.write_text("new")})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


SAVES = """
import sys
from pathlib import Path
from decayprune.checkpoint.atomic import write_atomically

folder, me = Path(sys.argv[1]), sys.argv[2]
for _ in range(100):
    write_atomically({folder / name: lambda to: to.write_text(me) for name in ("a", "b")})
"""


def test_processes_that_write_at_once_take_turns(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVES, str(tmp_path)]
    running = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE) for i in range(3)]
    for process in running:
        assert process.communicate(timeout=120)[1].decode() == ""
        assert process.returncode == 0
    found = contents(tmp_path)
    assert found.keys() == {"a", "b"}
    assert found["a"] == found["b"]
