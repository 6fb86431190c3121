"""The options, and the file that sets them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from decayprune.app.cli.options import Plain, share, was_given, with_options
from decayprune.app.run.settings import Settings


def parsed(*words: str) -> tuple[dict[str, Any], set[str], str]:
    """What the command would be called with, and what of it was given."""
    app, found, given = typer.Typer(add_completion=False), {}, set()

    @app.command(cls=Plain)
    @with_options
    def prune(ctx: typer.Context, **options: Any) -> None:
        found.update(options)
        given.update(name for name in options if was_given(ctx, name))

    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    return found, given, result.output


def test_every_choice_of_a_run_is_an_option_with_its_default() -> None:
    found, given, _ = parsed()
    usual = Settings()
    assert {name: found[name] for name in usual.to_dict()} == usual.to_dict()
    assert not given


def test_shares_may_be_percent() -> None:
    found, given, _ = parsed("--budget", "50%", "--floor", "0.2", "--params-budget", " 30 %")
    assert (found["budget"], found["floor"], found["params_budget"]) == (0.5, 0.2, 0.3)
    assert given == {"budget", "floor", "params_budget"}
    with pytest.raises(typer.BadParameter, match=r"such as 50% or 0\.5; found 'half'"):
        share("half")
    assert "such as 50% or 0.5; found" in parsed("--budget", "half")[2]


def test_a_file_sets_options_and_what_is_typed_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "budget = '40%'\nprune-epochs = 3\nseed = 7\nbf16 = true\noverwrite = true\n"
        "ignored_layers = ['stem.*', 'head']\nout = 'elsewhere'\n"
    )
    found, given, _ = parsed("--config", str(path), "--seed", "8")
    assert (found["budget"], found["prune_epochs"], found["seed"]) == (0.4, 3, 8)
    assert (found["bf16"], found["overwrite"]) == (True, True)
    assert (found["ignored_layers"], found["out"]) == ("stem.*,head", Path("elsewhere"))
    assert {"budget", "seed", "out"} <= given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budgett = 0.5", "sets budgett; expected options: batch-size"),
        ("budget = ", "is no TOML file"),
        ("budget = 'half'", "such as 50% or 0.5; found 'half'"),
        ("seed = 'x'", "Invalid value for '--seed'"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    found, _, output = parsed("--config", str(path))
    assert not found
    assert message in unwrapped(output)
    missing = parsed("--config", str(tmp_path / "none.toml"))[2]
    assert "cannot be read" in unwrapped(missing)


def unwrapped(output: str) -> str:
    """What a box says; where its lines end depends on how long a path is."""
    return " ".join(output.replace("│", " ").split())


def test_the_help_explains_every_option_and_no_flag_takes_a_bool() -> None:
    _, _, output = parsed("--help")
    assert "<bool>" not in output
    for field in fields(Settings):
        assert "--" + field.name.replace("_", "-") in output
