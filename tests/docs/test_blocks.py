"""Every Python block of the README and the docs runs, in the order of its page.

The blocks of a page share one namespace, which begins with the names of ``stage.py``; a diff runs
as what it leads to. Two HTML comments, which no reader sees, steer it: ``<!-- fresh -->`` starts
the namespace anew before the next block, and ``<!-- run ... -->`` holds Python of the test alone
(usually what must be true now). A third, ``<!-- needs ... -->``, names frameworks without which a
page is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage import stage

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOKEN = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$"
    r"|<!-- run\n(?P<hidden>.*?)-->"
    r"|(?P<fresh><!-- fresh -->)",
    re.MULTILINE | re.DOTALL,
)

NEEDS = re.compile(r"<!-- needs (.*?) -->")


def blocks(text: str) -> Iterator[tuple[int, str | None]]:
    """(line, code) of every Python block; no code where the namespace starts anew."""
    for found in TOKEN.finditer(text):
        if found["fresh"]:
            yield 0, None
        elif found["hidden"] is not None:
            yield text.count("\n", 0, found.start("hidden")), found["hidden"]
        elif found["language"] in ("python", "diff"):
            # A diff shows what is new in known code: without its first column it is the result.
            skip = len(found["indent"]) + (found["language"] == "diff")
            lines = found["code"].splitlines(keepends=True)
            code = "".join(line[skip:] or "\n" for line in lines if not line.startswith("-"))
            yield text.count("\n", 0, found.start("code")), code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text(encoding="utf-8")
    for framework in " ".join(NEEDS.findall(text)).split():
        name, _, version = framework.partition(">=")
        pytest.importorskip(name, version or None, reason=f"the page shows {framework}")
    monkeypatch.chdir(tmp_path)
    names = stage()
    for line, code in blocks(text):
        if code is None:
            names = stage()
        else:  # blank lines in front: a traceback then shows the line of the page
            exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), names)


def test_blocks_are_found_as_they_are_written() -> None:
    text = "a\n```python\nx = 1\n```\n<!-- fresh -->\n- b\n\n    ```python\n    y = 2\n    ```\n"
    text += "```sh\nls\n```\n<!-- run\nassert y\n-->\n```diff\n a\n-b\n+c\n```\n"
    assert list(blocks(text)) == [
        (2, "x = 1\n"),
        (0, None),
        (8, "y = 2\n"),
        (14, "assert y\n"),
        (17, "a\nc\n"),
    ]


def test_the_readme_and_the_quick_start_have_blocks() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        assert len(list(blocks(page.read_text(encoding="utf-8")))) >= 1, page


def test_tests_named_in_the_docs_exist() -> None:
    named = [
        (page.name, *found)
        for page in PAGES
        for found in re.findall(
            r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")
        )
    ]
    assert named
    for page, path, function in named:
        assert (ROOT / path).is_file(), f"{page} names {path}"
        text = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {function}" in text, f"{page} names {path}::{function}"
