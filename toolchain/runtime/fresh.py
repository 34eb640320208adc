"""A fresh process that answers: what a device waits for after a start, and the memory that it needs.

`measure` starts this file as a program again and again; each process makes one session, answers, and says
on its standard output when, and with how much memory. Processes of their own, because a process that has run
a model before has libraries, weights and memory at hand that a device after a start has not. Each also says how long
its calls take once it is warm: where code and data of a process happen to lie makes it faster or slower for all of its
life, so what several processes agree on is a figure of the model, and what one says may be luck. A reference takes turns
with them (reference.py), so that figures of different hours can be compared.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from os import environ, pathsep
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.runtime import providers
from toolchain.runtime.bench_record import ColdStart, Memory
from toolchain.runtime.errors import HostError, ToolchainError
from toolchain.runtime.session import Session

_STATUS = Path("/proc/self/status")
_CALLS = 20  # before memory is read
_PATIENCE = 600.0  # seconds that one process may take


@dataclass(frozen=True)
class Setup:
    """How a model is loaded: Session's settings as plain values."""

    provider: str = "cpu"
    threads: int = 1
    spinning: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def session(self, model: Path | bytes) -> Session:
        """Load the model so. Raises as Session does."""
        return Session(
            model, provider=self.provider, threads=self.threads, spinning=self.spinning, options=self.options
        )

    def as_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Starts:
    """What fresh processes told, None where none did; `failure`, or Ctrl-C, ended them early."""

    cold: ColdStart | None = None
    memory: Memory | None = None
    failure: HostError | None = None
    stopped: bool = False


def measure(model: Path, setup: Setup, feed: Mapping[str, NDArray[Any]], repeats: int) -> Starts:
    """Start `repeats` (>= 1) processes one after the other, each of which loads the model and answers `feed`.

    first_answer spans from before the process is started to its first answer, imports and session included;
    the reading of the input is taken out. Memory is the largest of all of them, in bytes of host memory; None
    where the kernel does not tell it. A process that ends without its figures, or cannot be started, and Ctrl-C end
    them: those before it are kept.
    """
    told: list[dict[str, Any]] = []
    failure, stopped = None, False
    try:
        with tempfile.TemporaryDirectory() as folder:
            inputs = Path(folder, "feed.npz")
            write_feed(inputs, feed)
            for _ in range(repeats):
                told.append(_one(model, setup, inputs))
    except OSError as e:
        failure = HostError(f"{model}: no fresh process could be started ({e.strerror or e})")
    except HostError as e:
        failure = e
    except KeyboardInterrupt:
        stopped = True
    if not told:
        return Starts(failure=failure, stopped=stopped)
    memory = Memory(max(one["peak_bytes"] for one in told), max(one["steady_bytes"] for one in told))
    known = all(one["peak_bytes"] for one in told)
    names = ("session_ns", "first_answer_ns", "call_ns", "relative", "share")
    cold = ColdStart(*(tuple(one[name] for one in told if name in one) for name in names))
    return Starts(cold, memory if known else None, failure, stopped)


def write_feed(path: Path, feed: Mapping[str, NDArray[Any]]) -> None:
    """Keep a model's inputs by name in an .npz; they are numbered, because numpy takes some names for its own."""
    np.savez(path, np.array(list(feed), dtype=np.str_), *feed.values())


def read_feed(path: Path | str) -> dict[str, NDArray[Any]]:
    """What `write_feed` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return {str(name): arrays[f"arr_{number}"] for number, name in enumerate(arrays["arr_0"], 1)}


def _one(model: Path, setup: Setup, inputs: Path) -> dict[str, Any]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [environ.get("PYTHONPATH")])]
    job = {"model": str(model.resolve()), "inputs": str(inputs), "setup": setup.as_json()}
    command = [sys.executable, "-m", "toolchain.runtime.fresh", json.dumps(job)]
    started = time.monotonic_ns()
    try:
        done = subprocess.run(
            [*command, str(started)], env={**environ, "PYTHONPATH": pathsep.join(paths)},
            capture_output=True, text=True, check=False, timeout=_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        raise HostError(f"{model}: a fresh process did not answer within {_PATIENCE:.0f} s") from e
    if done.returncode:
        raise HostError(f"{model}: a fresh process {_ending(done.returncode, done.stderr)}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _ending(code: int, said: str) -> str:
    if code < 0:
        hint = "; it may have run out of memory" if -code == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name} before it answered{hint}"
    lines = said.strip().splitlines()
    return f"could not answer ({lines[-1] if lines else f'exit code {code}'})"


def main(arguments: list[str]) -> int:
    """The fresh process: load, answer, print the figures as one line of JSON."""
    job, started = json.loads(arguments[0]), int(arguments[1])
    before = time.monotonic_ns()
    feed = read_feed(job["inputs"])
    loading = time.monotonic_ns()
    setup = Setup(**job["setup"])
    try:
        session = setup.session(Path(job["model"]))
        loaded = time.monotonic_ns()
        session.run(feed)
        answered = time.monotonic_ns()
        bound = session.bind(feed, copies=True).call if providers.has_own_memory(setup.provider) else None
        call = bound or partial(session.run, feed)
        for _ in range(_CALLS):
            call()
        held = memory()  # before the reference has any
        pace = _pace(setup, call)
    except ToolchainError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    figures = {
        "session_ns": loaded - loading,
        "first_answer_ns": answered - started - (loading - before),
        "peak_bytes": held.get("VmHWM", 0),
        "steady_bytes": held.get("VmRSS", 0),
        **pace,
    }
    print(json.dumps(figures))
    return 0


def _pace(setup: Setup, call: Callable[[], object]) -> dict[str, float]:
    """How long calls take; on one thread of the CPU also in units of the reference, see `reference.paced`, which is
    imported here, so that a start does not wait for it."""
    from toolchain.runtime.reference import paced, reference, typical

    if setup.provider != "cpu" or setup.threads != 1:
        return {"call_ns": typical(call)}
    own = {name: value for name, value in setup.options.items() if "." not in name}  # entries are the model's
    return paced(call, reference(replace(setup, options=own).session))._asdict()


def memory() -> dict[str, int]:
    """Resident bytes: now, and the most of this program's life. (ru_maxrss would count the parent's as well.)"""
    lines = (line.partition(":") for line in _STATUS.read_text().splitlines())
    return {key: 1024 * int(value.split()[0]) for key, _, value in lines if key in ("VmHWM", "VmRSS")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
