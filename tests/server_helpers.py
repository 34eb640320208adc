"""A server in a process of its own, as a device runs it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from toolchain.runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    url: str
    folder: Path
    log: Path
    grpc_port: int = 0

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=False)

    def raw(self, array: np.ndarray) -> np.ndarray:
        """What a session of the bundle answers without a server."""
        return Bundle.load(self.folder).session().run({"pictures": array})[0]


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "toolchain.runtime", "serve", str(folder), "--port", "0", *options]


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """Start, wait for the line that tells the address, yield, and stop."""
    log = folder.parent / f"{folder.name}.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command(folder, *options), stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        beside = re.match(r"gRPC on port (\d+)", line)
        line = process.stdout.readline() if beside else line
        found = re.search(r"on (https?://\S+)", line)
        assert found, f"{line}{log.read_text()}"
        yield Server(process, found[1], folder, log, int(beside[1]) if beside else 0)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(60)
        finally:
            process.stdout.close()


def refused(folder: Path, *options: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command(folder, *options), capture_output=True, text=True, env=environment, timeout=60
    )
    return done.returncode, done.stderr


def wait_for(happened: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
