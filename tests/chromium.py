"""A real Chromium, driven by its own DevTools protocol over two pipes: no driver, no port, no library."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--remote-debugging-pipe",
]  # fmt: skip


AS_3_AND_4 = """
import fcntl, os, sys
high = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One page. `errors` gathers what its scripts threw and what its policy refused."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []

    def open(self, url: str) -> None:
        """Show a page in a new tab, which later calls are for."""
        self._session = None
        self.errors.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                return reply["result"]

    def evaluate(self, script: str) -> Any:
        """The value of a script's last expression."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Until the script's value is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < end, f"{script}: {self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def choose(self, selector: str, file: Path) -> None:
        """As if a person chose the file in a dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def drop(self, selector: str, file: Path) -> None:
        """As if a person dragged the file onto an element and let it go."""
        box = self.evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('{selector}')"
                            ".getBoundingClientRect())")  # fmt: skip
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            assert select.select([self._back], [], [], 60)[0], "Chromium says nothing"
            part = os.read(self._back, 1 << 16)
            assert part, "Chromium is gone"
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        if found.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(found["params"]["exceptionDetails"]))
        if found.get("method") == "Log.entryAdded" and found["params"]["entry"]["source"] == "security":
            self.errors.append(found["params"]["entry"]["text"])
        return found


@contextlib.contextmanager
def chromium(program: str, folder: Path) -> Iterator[Page]:
    """Start it with a profile in `folder`; ended afterwards."""
    (from_us, to), (back, from_it) = os.pipe(), os.pipe()
    words = [program, *FLAGS, f"--user-data-dir={folder}"]
    with (folder.parent / "chromium.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, str(from_us), str(from_it), *words],
            pass_fds=(from_us, from_it), stdout=log, stderr=log, env=os.environ | {"HOME": str(folder.parent)},
        )  # fmt: skip
    for handle in (from_us, from_it):
        os.close(handle)
    try:
        yield Page(to, back)
    finally:
        process.terminate()
        process.wait(30)
        os.close(to)
        os.close(back)
