import errno
import json
import os
from pathlib import Path

import pytest
import torch

from decayprune.app.run.runfolder import RunFolder


def begun(path: Path) -> RunFolder:
    folder = RunFolder(path / "run")
    folder.begin({"seed": 1})
    return folder


def test_going_on_cuts_the_logs_back_to_the_checkpoint(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.append("history.jsonl", [{"step": 1}, {"step": 2}])
    folder.save({"weights": torch.arange(3), "step": 2})
    folder.append("history.jsonl", [{"step": 3}])
    folder.append("events.jsonl", [{"step": 3}])
    state = folder.load()
    assert torch.equal(state["weights"], torch.arange(3))
    assert (folder.path / "history.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert (folder.path / "events.jsonl").read_text() == ""


def test_the_uncut_state_is_kept_apart_and_leaves_the_logs(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.save({"step": 5}, before_cut=True)
    folder.append("history.jsonl", [{"step": 6}])
    folder.save({"step": 6})
    assert folder.load(before_cut=True)["step"] == 5
    assert (folder.path / "history.jsonl").read_text() == '{"step": 6}\n'
    assert folder.load()["step"] == 6


def test_states_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert (folder.finished, folder.unfinished) == (False, False)
    folder.begin({"seed": 1})
    assert (folder.finished, folder.unfinished) == (False, False)
    folder.save({"step": 0})
    assert (folder.finished, folder.unfinished) == (False, True)
    folder.finish({"accuracy_after": 0.9})
    assert (folder.finished, folder.unfinished) == (True, False)
    assert folder.report() == {"accuracy_after": 0.9}
    assert not (folder.path / "checkpoint.pt").exists()


def test_beginning_clears_what_an_earlier_run_left_and_nothing_else(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.append("history.jsonl", [{"step": 1}])
    folder.finish({})
    (folder.path / "mine.txt").write_text("keep")
    folder.begin({"seed": 2})
    assert not folder.finished
    assert sorted(os.listdir(folder.path)) == ["mine.txt", "settings.json"]
    assert folder.settings() == {"seed": 2}


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.append("history.jsonl", [{"loss": float("nan"), "list": [float("inf"), 1.5]}])
    line = (folder.path / "history.jsonl").read_text()
    assert json.loads(line) == {"loss": None, "list": [None, 1.5]}


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path)
    folder.save({"step": 1})

    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save({"step": 2})
    assert folder.load()["step"] == 1
    assert not list(folder.path.glob("*.part"))


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign", "malicious"])
def test_damaged_checkpoints_are_refused(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = begun(tmp_path)
    folder.save({"weights": torch.zeros(1000)})
    path = folder.path / "checkpoint.pt"
    if damage == "foreign":
        torch.save({"another": "file"}, path)
    elif damage == "malicious":
        torch.save({"format": "decayprune-checkpoint", "version": 1, "state": Malicious()}, path)
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-500], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(ValueError, match=r"checkpoint\.pt should be a checkpoint of this version"):
        folder.load()
    assert not (tmp_path / "executed").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds no settings\.json.*--out"):
        folder.settings()
    folder.begin({})
    with pytest.raises(ValueError, match=r"checkpoint\.pt is missing: there is nothing to resume"):
        folder.load()
    folder.append("history.jsonl", [{"step": 1}])
    folder.save({"step": 1})
    (folder.path / "history.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"history\.jsonl should hold at least 12 bytes.*found 0"):
        folder.load()


@pytest.mark.parametrize("content", ["[1, 2]", "{broken", "\ufffe"])
def test_damaged_settings_are_refused(tmp_path: Path, content: str) -> None:
    folder = begun(tmp_path)
    (folder.path / "settings.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"settings\.json should"):
        folder.settings()
