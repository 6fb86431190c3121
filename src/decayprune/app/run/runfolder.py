"""What a run leaves on disk, written so that a run killed at any moment can go on.

Logs are JSON lines, flushed at once. A checkpoint is written beside the old one and renamed over
it; it remembers how long each log was, and going on from it cuts the logs back to that length.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from decayprune.checkpoint.atomic import leftovers, write_atomically

LOGS = ("history.jsonl", "events.jsonl", "norms.jsonl")
_SETTINGS, _REPORT = "settings.json", "report.json"
_CHECKPOINT, _BEFORE_CUT = "checkpoint.pt", "before_cut.pt"


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


class RunFolder:
    """The folder of one run.

    Args:
        path: Where it is; made when the run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here."""
        return (self.path / _REPORT).is_file()

    @property
    def unfinished(self) -> bool:
        """Whether a run began here, and can go on."""
        return not self.finished and (self.path / _CHECKPOINT).is_file()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, clear what an earlier run left in it, and keep the settings.

        Raises:
            ValueError: The folder cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The report goes first: what follows is no longer a finished run.
            self._remove(_REPORT, _SETTINGS, _CHECKPOINT, _BEFORE_CUT, "report.html", *LOGS)
            self.write_json(_SETTINGS, settings)
        except OSError as error:
            raise ValueError(
                f"--out expects a folder that can be made and written; {self.path} cannot "
                f"({error.strerror}). Name another one."
            ) from error

    def settings(self) -> dict[str, Any]:
        """The settings of the run that began here.

        Raises:
            ValueError: No run began here, or the file is damaged.
        """
        path = self.path / _SETTINGS
        if not path.is_file():
            raise ValueError(
                f"Expected the folder of an earlier run of `decayprune prune`; {self.path} holds "
                f"no {_SETTINGS}. Name the folder that was its --out, or start a run without "
                "--resume."
            )
        return _read_object(path)

    def report(self) -> dict[str, Any]:
        """The final figures of a finished run."""
        return _read_object(self.path / _REPORT)

    def append(self, log: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to a log, on disk when this returns."""
        text = "".join(json.dumps(_plain(dict(row))) + "\n" for row in rows)
        if text:
            with (self.path / log).open("a", encoding="utf-8") as file:
                file.write(text)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one JSON object, all or nothing."""
        text = json.dumps(_plain(dict(value)), indent=2) + "\n"
        write_atomically({self.path / name: lambda to: to.write_text(text, encoding="utf-8")})

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the final figures and drop the checkpoints, which are of no more use."""
        self.write_json(_REPORT, report)
        self._remove(_CHECKPOINT, _BEFORE_CUT)

    def _remove(self, *names: str) -> None:
        """Remove files, and what a killed process left of them."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
            for part in leftovers(self.path / name):
                part.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any], *, before_cut: bool = False) -> None:
        """Write a checkpoint of plain tensors and scalars.

        Args:
            state: What :meth:`load` gives back.
            before_cut: Keep it as the last state of the uncut model, apart from the running one.
        """
        sizes = {log: self._size(log) for log in LOGS}
        content = {"format": "decayprune-checkpoint", "version": 1, "logs": sizes, "state": state}
        name = _BEFORE_CUT if before_cut else _CHECKPOINT
        write_atomically({self.path / name: lambda to: torch.save(content, to)})

    def load(self, *, before_cut: bool = False) -> dict[str, Any]:
        """Read a checkpoint; the running one also cuts the logs back to its moment.

        Raises:
            ValueError: It is missing or damaged, or a log is shorter than it was.
        """
        path = self.path / (_BEFORE_CUT if before_cut else _CHECKPOINT)
        try:
            raw = io.BytesIO(path.read_bytes())
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing: there is nothing to resume.") from error
        try:
            content = torch.load(raw, weights_only=True, map_location="cpu")
            if content["format"] != "decayprune-checkpoint" or content["version"] != 1:
                raise KeyError("version")
            state, sizes = dict(content["state"]), dict(content["logs"])
        except Exception as error:  # a damaged archive makes torch raise almost anything
            raise ValueError(
                f"{path} should be a checkpoint of this version of decayprune; it is damaged or "
                f"another file ({type(error).__name__}). Start the run anew in another --out."
            ) from error
        if not before_cut:
            self._cut_back(sizes)
        return state

    def _size(self, log: str) -> int:
        path = self.path / log
        return path.stat().st_size if path.exists() else 0

    def _cut_back(self, sizes: Mapping[str, int]) -> None:
        for log, size in sizes.items():
            if self._size(log) < size:
                raise ValueError(
                    f"{self.path / log} should hold at least {size} bytes, as when the checkpoint "
                    f"was written; found {self._size(log)}. Start the run anew in another --out."
                )
            if self._size(log) > size:
                os.truncate(self.path / log, size)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} should be a JSON file; it cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold one JSON object; found {type(value).__name__}.")
    return value
