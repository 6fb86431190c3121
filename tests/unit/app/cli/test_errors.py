import errno

import pytest
import typer

from decayprune.app.cli.errors import describe, readable


def foreign(error: Exception) -> Exception:
    """An error as code outside the library raises it."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_what_is_meant_for_the_user_is_told_as_it_is() -> None:
    assert describe(foreign(ValueError("--lr must be above 0"))) == "--lr must be above 0"
    assert describe(foreign(FileNotFoundError("no such data"))) == "no such data"


def test_a_full_disk_says_that_nothing_is_lost() -> None:
    found = describe(foreign(OSError(errno.ENOSPC, "No space left on device", "out/report.json")))
    assert found.startswith("No space left on device (out/report.json). Files that were there")
    assert "--resume" in found


def test_a_missing_module_names_the_extra() -> None:
    found = describe(foreign(ModuleNotFoundError("No module named 'sklearn'")))
    assert "No module named 'sklearn'" in found
    assert "pip install 'decayprune[cli]'" in found


def test_anything_else_gets_its_type_and_a_way_to_see_where() -> None:
    found = describe(foreign(KeyError("lost")))
    assert found == "KeyError: 'lost'\nRun the command again with --traceback to see where."


def test_one_message_and_code_2_unless_a_traceback_is_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as left, readable(traceback=False):
        raise ValueError("lower --lr")
    assert left.value.exit_code == 2
    assert capsys.readouterr().err == "Error: lower --lr\n"
    with pytest.raises(ValueError, match="lower --lr"), readable(traceback=True):
        raise ValueError("lower --lr")


@pytest.mark.parametrize("way_out", [typer.Exit(130), typer.Abort(), KeyboardInterrupt()])
def test_ways_out_are_no_errors(way_out: BaseException) -> None:
    with pytest.raises(type(way_out)), readable(traceback=False):
        raise way_out
