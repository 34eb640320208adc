"""A driver as a process: with a time limit, its peak memory and, when it fails, its last error line."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.1
_EXCEPTION = re.compile(r"^(ERROR: |[A-Za-z_][\w.]*(Error|Exception|Fail|InvalidGraph|NotImplemented)\b)")
_FOLDERS = re.compile(r"(?:/[\w.+-]+)+/(?=[\w.+-]+)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 200


@dataclass(frozen=True)
class Outcome:
    """How a process ended: wall and processor time, peak resident memory, and why it failed if it did.

    Processor time counts the children that it waited for; on a busy machine only that is worth comparing.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    error: str | None


def run(command: Sequence[str], log: Path, environment: Mapping[str, str], limit_s: float) -> Outcome:
    """Run a command in a session of its own, in the log's folder; after `limit_s` seconds its whole group is killed."""
    start = time.monotonic()
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=dict(environment), cwd=log.parent,
            start_new_session=True,
        )  # fmt: skip
        status, usage, late = _wait(child.pid, start + limit_s)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    error = f"not done after {limit_s:.0f} s" if late else None
    if error is None and child.returncode:
        error = last_error(log.read_text(errors="replace")) or f"exit code {child.returncode}"
    return Outcome(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, error)


def _wait(pid: int, until: float) -> tuple[int, resource.struct_rusage, bool]:
    """(status, usage, whether it was killed for being late). What ends us ends its group too."""
    late = False
    try:
        while True:
            ended, status, usage = os.wait4(pid, 0 if late else os.WNOHANG)
            if ended:
                return status, usage, late
            if time.monotonic() > until:
                os.killpg(pid, signal.SIGKILL)
                late = True
            else:
                time.sleep(_POLL_S)
    except KeyboardInterrupt:
        os.killpg(pid, signal.SIGKILL)
        raise


def last_error(text: str) -> str | None:
    """The last line that names an exception, or else the last line that says anything; paths lose their folders."""
    lines = [line for raw in text.splitlines() if (line := _COLOURS.sub("", raw).strip())]
    named = [line for line in lines if _EXCEPTION.match(line)]
    found = (named or lines)[-1:]
    return _FOLDERS.sub("", found[0])[:_LONGEST] if found else None
