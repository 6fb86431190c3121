"""The page of a report: its curves tell the run as it was, and it renders anywhere."""

from __future__ import annotations

import builtins
import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from browser import Browser
from decayprune.app.report import Report, write_html
from run_folders import (
    EVENTS,
    finished,
    make_run,
    page_of,
    unfinished,
    write_big_run,
    write_lines,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


class TestPage:
    def test_says_everything(self, folder: Path) -> None:
        page = page_of(Report.read(folder), folder)
        for words in (
            "Half the compute (49.8\u00a0% of the MACs)", "<b>resnet8</b>", "97.20\u00a0%",
            "1.00 k",
            "decayprune prune --dataset digits", "the model&#39;s output", "A CPU @ 2 GHz", "2.9.0",
            "it reaches 0.85 of that ideal", "<b>3</b> decayed, <b>1</b> released", "4 → 2",
        ):  # fmt: skip
            assert words in page

    def test_releases_are_a_table_with_reasons(self, folder: Path) -> None:
        page = page_of(Report.read(folder), folder)
        row = (
            '<tr><td>conv #1</td><td class="n">14</td><td class="n">4</td><td>training pulled '
            "steadily against the decay and gave back 25\u00a0% of the length it took</td>"
        )
        assert row in page
        write_lines(folder / "events.jsonl", [e for e in EVENTS if e["kind"] != "release"])
        assert "their reasons" not in page_of(Report.read(folder), folder)

    def test_gives_the_line_to_type(self, folder: Path) -> None:
        page = page_of(Report.read(folder), folder)
        assert "<pre>decayprune prune --seed 1</pre>" in page
        assert "As it was typed: <code>decayprune prune --dataset digits</code>" in page

    def test_needs_no_network_and_no_script(self, folder: Path) -> None:
        page = page_of(Report.read(folder), folder)
        assert not re.search(r"https?:|<script|src=|@import|url\(", page)
        assert "default-src 'none'" in page
        assert set(re.findall(r'href="([^"]*)"', page)) == {"data:,"}

    def test_no_text_of_the_run_is_markup(self, folder: Path) -> None:
        evil = "<script>alert('x')</script>\"'&"
        write_lines(folder / "events.jsonl", [{**line, "layer": evil} for line in EVENTS])
        report = finished(
            folder,
            **dict.fromkeys(("command", "dataset", "model", "host"), evil),
            settings={evil: evil}, versions={evil: evil}, budget={evil: 0.5},
            machine={"cpu": evil, "cores": 1, "threads": 1},
            widths=[{"layer": evil, "before": 4, "after": 2}],
            refusals=[{"layer": evil, "width": 1, "reason": evil}],
        )  # fmt: skip
        page = page_of(report, folder)
        assert "<script" not in page
        assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&#34;&#39;&amp;") >= 14

    def test_of_an_unfinished_run_shows_what_there_is(self, folder: Path) -> None:
        page = page_of(unfinished(folder), folder)
        assert "<h1>Unfinished" in page
        assert "2 pruned, 1 released" in page
        assert page.count("<svg") == 3 + 1 + 1  # three curves, the trajectories, one lane
        assert "Before and after" not in page

    def test_of_a_run_without_logs_shows_the_figures(self, folder: Path) -> None:
        for log in folder.glob("*.jsonl"):
            log.unlink()
        page = page_of(Report.read(folder), folder)
        assert "Before and after" in page
        assert "<svg" not in page

    def test_of_a_long_run_stays_small(self, folder: Path) -> None:
        write_big_run(folder)
        write_html(Report.read(folder), folder / "report.html")
        assert (folder / "report.html").stat().st_size < 1_500_000

    def test_is_written_beside_and_renamed(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = folder / "report.html"
        page.write_text("the old page")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="found: No space left on device; give another path"):
            write_html(Report.read(folder), page)
        assert page.read_text() == "the old page"
        assert not [path for path in folder.iterdir() if path.name.endswith(".part")]

    def test_says_when_the_folder_cannot_take_it(self, folder: Path) -> None:
        (folder / "file").touch()
        with pytest.raises(OSError, match="expected a folder that takes the report"):
            write_html(Report.read(folder), folder / "file" / "report.html")

    def test_without_jinja2_names_the_extra(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original: Callable[..., Any] = builtins.__import__

        def absent(name: str, *rest: Any, **options: Any) -> Any:
            if name == "jinja2":
                raise ModuleNotFoundError("No module named 'jinja2'")
            return original(name, *rest, **options)

        monkeypatch.setattr(builtins, "__import__", absent)
        report = Report.read(folder)
        assert str(report)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'decayprune\[cli\]'"):
            write_html(report, folder / "report.html")


def headless() -> list[str]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    return [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--hide-scrollbars", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--enable-logging=stderr",
    ]  # fmt: skip


def chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*headless(), f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


class TestInABrowser:
    def test_renders_without_a_complaint(self, folder: Path, tmp_path: Path) -> None:
        page = tmp_path / "report.html"
        write_html(Report.read(folder), page)
        found = chromium(tmp_path, "--dump-dom", page.as_uri())
        assert "CONSOLE" not in found.stderr
        assert found.stdout.count("<svg") == 5
        assert "Half the compute" in found.stdout

    def test_follows_light_and_dark(self, folder: Path, tmp_path: Path) -> None:
        page = tmp_path / "report.html"
        write_html(Report.read(folder), page)
        paper = []
        for scheme in ("1", "0"):  # Chromium's numbers: 0 dark, 1 light
            shot = tmp_path / f"{scheme}.png"
            chromium(
                tmp_path, f"--blink-settings=preferredColorScheme={scheme}",
                "--window-size=1200,1400", f"--screenshot={shot}", page.as_uri(),
            )  # fmt: skip
            with Image.open(shot) as image:  # [channel, row, column]
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
            paper.append(pixels[:, 2, 2].mean())
            assert pixels[:, ::4, ::4].std() > 0.03  # there is something on the paper
        assert paper[0] > 0.9
        assert paper[1] < 0.2

    @pytest.mark.parametrize("width", [390, 1200])
    def test_nothing_is_wider_than_the_screen(
        self, folder: Path, tmp_path: Path, width: int
    ) -> None:
        long = "encoder.layers.11.attention.output.projection" * 3
        write_lines(folder / "events.jsonl", [{**line, "layer": long} for line in EVENTS])
        report = finished(
            folder,
            command="decayprune prune " + "--option=a/very/long/path" * 9,
            settings={long: long},
            widths=[{"layer": long, "before": 4, "after": 2}],
            refusals=[{"layer": long, "width": 2048, "reason": "mixed by LayerNorm"}],
        )
        inner = html.escape(page_of(report, folder))
        outer = tmp_path / "phone.html"
        outer.write_text(
            f'<iframe width="{width}" height="800" srcdoc="{inner}" onload="document.title ='
            " 'scroll width ' + this.contentDocument.documentElement.scrollWidth\"></iframe>",
            encoding="utf-8",
        )
        found = chromium(tmp_path, "--dump-dom", outer.as_uri())
        assert f"<title>scroll width {width}</title>" in found.stdout

    @pytest.mark.parametrize(
        ("mark", "figures"),
        [
            (".plot .cell", r"^steps? .*, (train|prune|fine-tune)\nloss "),
            (".trajectory.released path", r"^conv #1: released at step 14\nC_rate 0\.5, C_len"),
            (".lane .cell", r"^step 10\n2 began to decay\n4 of 4 remain, 2 of them decaying"),
        ],
    )
    def test_pointing_at_a_mark_lights_it_up_with_its_figures(
        self, folder: Path, tmp_path: Path, mark: str, figures: str
    ) -> None:
        page = tmp_path / "report.html"
        write_html(Report.read(folder), page)
        command = [*headless(), "--window-size=1200,900"]
        with Browser(command, tmp_path / "profile", page.as_uri()) as browser:
            looks = "(e => [e.opacity, e.strokeWidth])(getComputedStyle(found))"
            found = f"const found = document.querySelector({mark!r}).closest('.cell, .trajectory');"
            before = browser.value(f"{{ {found} {looks} }}")
            browser.point_at(*browser.value(MIDDLE % repr(mark)))
            assert browser.value(f"{{ {found} found.matches(':hover') }}")
            assert browser.value(f"{{ {found} {looks} }}") != before
            # Browsers show the title of what is under the pointer.
            title = browser.value(f"{{ {found} found.querySelector('title').textContent }}")
            assert re.search(figures, title), title


MIDDLE = """(() => {
    const mark = document.querySelector(%s);
    mark.scrollIntoView({block: "center"});
    if (mark.tagName === "path") {
        const middle = mark.getPointAtLength(mark.getTotalLength() / 2);
        const point = middle.matrixTransform(mark.getScreenCTM());
        return [point.x, point.y];
    }
    const box = mark.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})()"""
