import json
from pathlib import Path

import pytest

from decayprune.app.pretrained.arms import ARMS
from decayprune.app.pretrained.recipe import RECIPES, WORDS, Recipe, markdown, run_all, runs
from pretrained_toy import Toy

RATES = {"abrupt": 0.01, "dense_on": 0.01}


def recipe(folder: Path, *packages: str) -> Recipe:
    return Recipe(lambda: Toy(folder), RATES, packages, "pip install what-it-needs")


def test_every_arm_of_a_recipe_is_known_and_has_words() -> None:
    for found in RECIPES.values():
        assert set(found.rates) <= set(ARMS)
        assert set(found.rates) <= set(WORDS)


def test_runs_go_seed_by_seed_and_steps_shorten_both_phases() -> None:
    found = runs(RECIPES["minilm-wordnet"], 2, None)
    arms = len(RECIPES["minilm-wordnet"].rates)
    assert [run.seed for run in found] == [0] * arms + [1] * arms
    assert {(run.steps, run.dense_steps, run.budget) for run in found} == {(1200, 800, 0.25)}
    assert {(run.steps, run.dense_steps) for run in runs(RECIPES["minilm-wordnet"], 1, 900)} == {
        (900, 800)
    }
    assert {run.dense_steps for run in runs(RECIPES["minilm-wordnet"], 1, 20)} == {20}


def test_what_has_run_is_not_run_again(tmp_path: Path) -> None:
    said: list[str] = []
    wanted = runs(recipe(tmp_path / "cache"), 1, 20)
    rows = run_all(recipe(tmp_path / "cache"), wanted, tmp_path / "out", said.append)
    assert len(said) == len(rows) == 2
    file = tmp_path / "out" / "abrupt-0.25-20-s0.json"
    file.write_text(json.dumps(rows[0] | {"accuracy": 0.125}))
    nothing = Recipe(lambda: pytest.fail("nothing is left to run"), RATES, (), "")
    again = run_all(nothing, wanted, tmp_path / "out", said.append)
    assert len(said) == 2
    assert [row["accuracy"] for row in again] == [0.125, rows[1]["accuracy"]]


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    wanted = runs(recipe(tmp_path), 1, 20)
    run_all(recipe(tmp_path), wanted, tmp_path / "out", lambda line: None)
    file = tmp_path / "out" / "abrupt-0.25-20-s0.json"
    row = json.loads(file.read_text())
    row["run"]["lr"] = 0.5
    file.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"abrupt-0.25-20-s0.json is of another run .*--out"):
        run_all(recipe(tmp_path), wanted, tmp_path / "out", lambda line: None)


def test_what_is_missing_is_said_before_the_first_run(tmp_path: Path) -> None:
    needy = recipe(tmp_path, "json", "no_such_package_of_weights")
    with pytest.raises(ValueError, match=r"no_such_package_of_weights.*pip install what-it-needs"):
        run_all(needy, runs(needy, 1, 5), tmp_path, lambda line: None)


def test_the_table_has_the_best_first_and_the_spread_of_seeds() -> None:
    def row(arm: str, accuracy: float) -> dict[str, object]:
        rest = {"dense_accuracy": 0.9, "macs": 0.25, "params": 0.5, "speedup": 2.0}
        return {"run": {"arm": arm}, "accuracy": accuracy, **rest}

    rows = [row("abrupt", 0.7), row("sensitive_abrupt", 0.8), row("sensitive_abrupt", 0.82)]
    lines = markdown(rows).splitlines()
    assert lines[2] == (
        "| calibrated, at once | 81.00% ± 1.41 | 90.00% | 25.0% | 50.0% | 2.00x | 2 |"
    )
    assert lines[3].startswith("| magnitude, at once | 70.00% | 90.00%")
