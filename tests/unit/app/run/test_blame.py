import json
from pathlib import Path

import pytest

from decayprune.app.run.blame import blamed, on_purpose
from decayprune.app.run.own import arguments


def test_an_error_of_the_users_code_names_the_option_the_line_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import json\n\ndef loss():\n    json.loads('{')\n")
    own: dict[str, object] = {}
    exec(compile((tmp_path / "mine.py").read_text(), tmp_path / "mine.py", "exec"), own)
    wanted = r"--loss mine:loss raised JSONDecodeError"
    with pytest.raises(ValueError, match=wanted) as caught, blamed("--loss", "mine:loss"):
        own["loss"]()  # type: ignore[operator]
    # Not the line in json's own files, where it was raised.
    assert "(mine.py, line 4). Mend it there; --traceback shows" in str(caught.value)
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_what_a_worker_process_passed_on_is_told_in_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    passed = "Caught KeyError in DataLoader worker process 0.\nOriginal Trace ...\nKeyError: 'x'"
    wanted = r"--data a:b raised RuntimeError: 'x'\. Mend"
    with pytest.raises(ValueError, match=wanted), blamed("--data", "a:b"):
        raise RuntimeError(passed)


def test_code_of_ours_and_messages_of_ours_stay_as_they_are() -> None:
    with pytest.raises(KeyError), blamed("--data", ""):
        raise KeyError("x")
    wanted = r"^--model expects arguments"
    with pytest.raises(ValueError, match=wanted) as caught, blamed("--model", "a:b"):
        arguments("x", "--model")
    assert on_purpose(caught.value)
