"""A page in headless Chromium with a pointer, over the DevTools protocol: two pipes, JSON, NULs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

# The browser reads from descriptor 3 and writes to descriptor 4.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Opens a page; as a context manager, so that the browser ends with the test.

    Args:
        program: Chromium or Chrome, with the options to run it headless.
        profile: Folder for its profile.
        page: Address to open.
    """

    def __init__(self, program: list[str], profile: Path, page: str) -> None:
        hears, self._to = os.pipe()
        self._from, says = os.pipe()
        command = [*program, f"--user-data-dir={profile}", "--remote-debugging-pipe", page]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(hears), str(says), *command],
            pass_fds=(hears, says),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(hears)
        os.close(says)
        self._count, self._rest, self._session = 0, b"", ""

    def __enter__(self) -> Browser:
        try:
            target = self._page_target()
            found = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = found["sessionId"]
            loaded = "document.readyState === 'complete' && location.href !== 'about:blank'"
            self._until(loaded)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def point_at(self, x: float, y: float) -> None:
        """Move the pointer there, in CSS pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is worth in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._from, 1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))

    def _page_target(self) -> str:
        for _ in range(100):
            for target in self.call("Target.getTargets")["targetInfos"]:
                if target["type"] == "page":
                    return str(target["targetId"])
            time.sleep(0.1)
        raise AssertionError("the browser opened no page")

    def _until(self, expression: str) -> None:
        for _ in range(100):
            if self.value(expression):
                return
            time.sleep(0.1)
        raise AssertionError(f"never came true: {expression}")
