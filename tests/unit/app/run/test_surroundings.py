import subprocess
from pathlib import Path

import pytest

import decayprune as dp
from decayprune.app.run.surroundings import commit, machine, versions


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def checkout(root: Path, project: str = "decayprune") -> Path:
    """A repository with the package where a checkout has it; its folder."""
    package = root / "src" / "decayprune"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (root / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return package


@pytest.fixture(autouse=True)
def no_repository_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def test_a_checkout_has_its_commit(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    assert commit(package) == git(tmp_path, "rev-parse", "--short", "HEAD")


@pytest.mark.parametrize("change", ["__init__.py", "new.py"])
def test_changed_and_new_code_is_never_shown_as_clean(tmp_path: Path, change: str) -> None:
    package = checkout(tmp_path)
    clean = commit(package)
    (package / change).write_text("x = 1\n")
    assert commit(package) == f"{clean}-dirty"


def test_results_beside_the_package_do_not_make_it_dirty(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.json").write_text("{}")
    assert commit(package) == git(tmp_path, "rev-parse", "--short", "HEAD")


def test_the_repository_of_others_says_nothing_about_an_installed_package(tmp_path: Path) -> None:
    checkout(tmp_path / "ours")
    installed = tmp_path / "ours" / "venv" / "site-packages" / "decayprune"
    installed.mkdir(parents=True)
    assert commit(installed) is None
    assert commit(checkout(tmp_path / "theirs", project="analysis")) is None
    alone = tmp_path / "src" / "decayprune"
    alone.mkdir(parents=True)
    assert commit(alone) is None


def test_versions_and_machine() -> None:
    assert versions()["decayprune"] == dp.__version__
    assert machine(3)["threads"] == 3
    assert machine(1)["cores"] >= 1
