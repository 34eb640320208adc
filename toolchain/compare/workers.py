"""A worker process seen from the comparison: started, asked, ended, and what to say when it dies."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import toolchain
from toolchain import errors
from toolchain.errors import HostError, ModelError, ToolchainError
from toolchain.record import JSON
from toolchain.runtime.fresh import Setup

_ROOT = str(Path(toolchain.__file__).resolve().parents[1])
_READ = 1 << 16


class WorkerProcess:
    """`toolchain.runtime.worker` for one side, as a context: left, it is gone.

    name: "base" or "candidate", for sentences; patience: seconds without an answer after which it is given up.
    """

    def __init__(self, name: str, file: Path, inputs: Path, setup: Setup, patience: float) -> None:
        self.name, self._file, self._patience = name, file, patience
        path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        job = {"model": str(file.resolve()), "inputs": str(inputs), "setup": setup.as_json()}
        with ExitStack() as held:
            try:
                self._said = held.enter_context(tempfile.TemporaryFile())
                started = time.monotonic_ns()
                self._process = self._start(path)
            except OSError as error:
                raise HostError(f"no process can be started for the {name} ({error.strerror})") from error
            held.pop_all()  # closed with the worker
        self._read = b""
        self._write(job | {"started_ns": started})

    def _start(self, path: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "toolchain.runtime.worker"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._said, bufsize=0, env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for us: we end it, and keep what it told
        )  # fmt: skip

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                pipe.close()

    def ask(self, question: Mapping[str, JSON]) -> dict[str, JSON]:
        """One question and its answer; raises as `answer` does."""
        self._write(question)
        return self.answer()

    def answer(self) -> dict[str, JSON]:
        """The next line. Raises the worker's own ToolchainError, HostError when it died or is silent."""
        deadline = time.monotonic() + self._patience
        while b"\n" not in self._read:
            self._fill(deadline)
        line, _, self._read = self._read.partition(b"\n")
        found: dict[str, JSON] = json.loads(line)
        if "error" in found:
            kind = getattr(errors, str(found["kind"]), ModelError)
            told: ToolchainError = kind(f"the {self.name}: {found['error']}")
            raise told
        return found

    def finish(self) -> None:
        """Wait for the end of a worker that was told to end."""
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            raise self._silent() from None

    def _write(self, message: Mapping[str, JSON]) -> None:
        pipe = self._process.stdin
        try:
            if pipe is not None:
                pipe.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise self._dead() from None

    def _fill(self, deadline: float) -> None:
        pipe = self._process.stdout
        if pipe is None:
            raise self._dead()
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise self._silent()
        part = os.read(pipe.fileno(), _READ)
        if not part:
            raise self._dead()
        self._read += part

    def _silent(self) -> HostError:
        return HostError(f"the {self.name} ({self._file.name}) gave no answer for {self._patience:.0f} s")

    def _dead(self) -> HostError:
        code = self._process.wait()
        where = f"the process of the {self.name} ({self._file.name})"
        if code < 0:
            hint = ": was it killed, or had the machine no memory left?" if -code == signal.SIGKILL else ""
            return HostError(f"{where} was ended by {signal.Signals(-code).name}{hint}")
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return HostError(f"{where} ended by itself ({lines[-1] if lines else f'exit code {code}'})")
