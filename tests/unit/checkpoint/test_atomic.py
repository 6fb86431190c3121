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
    (tmp_path / "a.part").write_text("a longer text that was never finished")
    write_atomically({tmp_path / "a": lambda to: to.write_text("new")})
    assert contents(tmp_path) == {"a": "new"}


def test_the_disk_has_the_content_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("os.fsync", lambda descriptor: seen.append(contents(tmp_path)))
    write_atomically({tmp_path / "a": lambda to: to.write_text("new")})
    assert seen == [{"a.part": "new"}]
