"""One side of a comparison in a process of its own: `python -m toolchain.runtime.worker`, JSON lines in and out.

    in   {"model": PATH, "inputs": NPZ, "setup": Setup.as_json(), "started_ns": time.monotonic_ns() of the start}
    out  {"session_ns", "first_answer_ns", "call_ns", "state": [device, inode, bytes, mtime_ns]}
    in   {"calls": n}
    out  {"samples_ns": [n times]}
    in   {}
    out  {"peak_bytes", "steady_bytes"}                     and the process ends; 0 where the kernel does not say

What cannot be done is answered by {"error": sentence, "kind": class}, and the process ends. Only one side of
a comparison is asked at a time; between questions a worker waits on its pipe and uses no processor.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from toolchain.runtime import providers
from toolchain.runtime.errors import ModelError, ToolchainError
from toolchain.runtime.fresh import Setup, memory, read_feed
from toolchain.runtime.timing import quiet, time_calls
from toolchain.runtime.warm_up import Steadiness, warm_up

# Short, because many processes are started: what is still cold then is so for both sides, and is left out
# with the first calls of every block.
WARM_UP = Steadiness(windows=2, window_seconds=0.03, seconds=1.0)


def state(path: Path) -> list[int]:
    """[device, inode, bytes, mtime in ns] of a file: another after it was replaced or written to."""
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


class Worker:
    """A loaded model that has answered once; `call` asks it again."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        path, before = Path(job["model"]), time.monotonic_ns()
        feed = read_feed(job["inputs"])
        self.state, loading = state(path), time.monotonic_ns()
        setup = Setup(**job["setup"])
        session = setup.session(path)
        loaded = time.monotonic_ns()
        session.run(feed)
        answered = time.monotonic_ns()
        self.session_ns = loaded - loading
        self.first_answer_ns = answered - int(job["started_ns"]) - (loading - before)
        if providers.has_own_memory(setup.provider):
            self.call = session.bind(feed, copies=True).call
        else:
            self.call = lambda: session.run(feed)


def serve(questions: TextIO, answers: TextIO) -> None:
    """Answer until told to end, or until nobody asks any more."""

    def say(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        worker = Worker(json.loads(questions.readline()))
        with quiet():
            warm_up(worker.call, WARM_UP)
            call_ns = float(np.median(time_calls(worker.call, 3)))
            say({
                "session_ns": worker.session_ns, "first_answer_ns": worker.first_answer_ns, "call_ns": call_ns,
                "state": worker.state,
            })  # fmt: skip
            for line in questions:
                calls = json.loads(line).get("calls")
                if calls is None:
                    held = memory()
                    say({"peak_bytes": held.get("VmHWM", 0), "steady_bytes": held.get("VmRSS", 0)})
                    return
                say({"samples_ns": time_calls(worker.call, calls)})
                gc.collect(0)
    except ToolchainError as error:
        say({"error": str(error), "kind": type(error).__name__})


def main() -> int:
    """Serve on standard input and output; whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
