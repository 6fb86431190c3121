"""What is said about versions, in several places, is the same everywhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # Python 3.10 has no tomllib
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def from_ci(function: str) -> list[str]:
    """What a function of one line or one body in .ci/run prints, in lines."""
    (body,) = re.findall(rf"^{function}\(\) {{.*?}}$", RUN, re.MULTILINE | re.DOTALL)
    command = ["bash", "-euc", f"{body}\n{function}"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    pythons = from_ci("supported_pythons")
    first, last = (int(python.removeprefix("3.")) for python in (pythons[0], pythons[-1]))
    assert pythons == [f"3.{minor}" for minor in range(first, last + 1)]
    assert f'requires-python = ">=3.{first}"' in CONFIG
    assert f'python_version = "3.{first}"' in CONFIG  # mypy
    for page in ("README.md", "CONTRIBUTING.md", "docs/index.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert f"Python 3.{first} to 3.{last}" in text, page
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"python: \[(.*)\]", workflow) == [", ".join(f'"{p}"' for p in pythons)]


def test_every_requirement_is_tested_at_its_lower_bound() -> None:
    pins = from_ci("lower_bounds")
    names = [pin.partition("==")[0] for pin in pins]
    assert len(set(names)) == len(names), "one requirement has two bounds"
    core = CONFIG.partition("\ndependencies = [")[2].partition("\n]")[0]
    assert {f"{n}=={bound}" for n, bound in re.findall(r'"([\w-]+)>=([\d.]+)"', core)} <= set(pins)
    assert len(re.findall(r'^  "', core, re.MULTILINE)) == core.count(">=")  # each has a bound
