"""Both sides timed in turns: fresh processes, blocks in random order, until the answer is known or time is up.

A turn starts one process a side, one after the other in random order, because where code and data of a
process happen to lie in memory can make it percents slower or faster for all of its life (Mytkowicz et al.
2009, Producing wrong data without doing anything obviously wrong; Kalibera & Jones 2013, Rigorous
benchmarking in reasonable time). Then one side runs at a time: pairs of blocks, half of them with the base
first, in random order.

A turn's figure is the median over pairs of blocks of the logarithm of the ratio of their fastest calls. What the
rest of the machine does only ever adds time (Chen & Revels 2016, Robust benchmarking in noisy environments), but a
machine that is shared also changes its pace for seconds (2.4 to 4.8 ms a call were seen), and the fastest call of a
whole turn then tells which side met a fast moment: neighbouring blocks of 20 ms mostly meet the same. On such a
machine four of five turns of a file against itself lay within 2 % of 1 so, within 4 % of it by the fastest
calls of whole turns, and within 3 % with 8 pairs of 40 ms instead of 20 of 20 ms.
A fastest call does not see what slows down only some calls, so a *typical* ratio is watched beside it: the median
over pairs of blocks of the logarithm of the ratio of their median calls. Turns are what intervals are drawn from.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolchain.compare.sides import Side
from toolchain.compare.workers import WorkerProcess
from toolchain.errors import HostError, StoppedError, ToolchainError
from toolchain.progress import Progress
from toolchain.record import JSON
from toolchain.runtime.fresh import Setup, write_feed

NAMES = ("base", "candidate")
_FEWEST, _MOST = 5, 500  # calls a block
_DROPPED = 0.2
_STOPPED = "stopped by hand; what was measured until then is above and in the files asked for"


@dataclass(frozen=True)
class Timing:
    """How to time. max_seconds: no turn is begun that would probably end later; pairs: of blocks a turn, at most;
    block_seconds: what a block should last; turn_seconds: what all blocks of a turn should, at most, where two
    pairs allow it; seed: of all orders; patience: seconds for any one answer."""

    setup: Setup = field(default_factory=Setup)
    max_seconds: float = 120.0
    pairs: int = 20
    block_seconds: float = 0.02
    turn_seconds: float = 1.2
    seed: int | None = None
    patience: float = 300.0


@dataclass(frozen=True)
class Half:
    """One side of a turn. samples_ns: [pairs][calls], raw; the first `dropped` calls of a block do not count."""

    samples_ns: tuple[tuple[int, ...], ...]
    session_ns: int
    first_answer_ns: int
    peak_bytes: int


@dataclass(frozen=True)
class Turn:
    """Base and candidate in one turn."""

    base: Half
    candidate: Half
    dropped: int

    @property
    def blocks(self) -> NDArray[np.int64]:
        """The times that count, in ns: [2, pairs, calls], the base's first."""
        found = np.array([self.base.samples_ns, self.candidate.samples_ns], np.int64)
        return found[:, :, self.dropped :]

    @property
    def fastest(self) -> NDArray[np.int64]:
        """The fastest call of every block, in ns: [2, pairs]."""
        found: NDArray[np.int64] = self.blocks.min(axis=2)
        return found

    @property
    def medians(self) -> NDArray[np.float64]:
        """The median call of every block, in ns: [2, pairs]."""
        found: NDArray[np.float64] = np.median(self.blocks, axis=2)
        return found

    @property
    def log_ratio(self) -> float:
        """The median over pairs of blocks of log(candidate / base) of their fastest calls."""
        base, candidate = self.fastest
        return float(np.median(np.log(candidate / base)))

    @property
    def typical_log_ratio(self) -> float:
        """The median over pairs of blocks of log(candidate / base) of their median calls."""
        base, candidate = self.medians
        return float(np.median(np.log(candidate / base)))


@dataclass(frozen=True)
class Series:
    """All finished turns, the wall time in seconds, calls a block, and what ended them early, if anything did."""

    turns: tuple[Turn, ...]
    seconds: float
    calls: int
    failure: ToolchainError | None = None


Done = Callable[[Sequence[Turn]], Mapping[str, float | str] | None]


def run(base: Side, candidate: Side, timing: Timing, done: Done, progress: Progress) -> Series:
    """Time turns until `done(turns)` is None (it is asked after each) or `timing.max_seconds` are over.

    What `done` gives instead are figures to show beside the bar. Raises ToolchainError when not even one turn
    could be finished; later failures (a model that was replaced, a process that was killed, Ctrl-C) end the series,
    which keeps what it has and says why.
    """
    sides, started = (base, candidate), time.monotonic()
    order = random.Random(timing.seed)
    turns: list[Turn] = []
    failure: ToolchainError | None = None
    with tempfile.TemporaryDirectory() as folder, progress.task("turns, s", timing.max_seconds) as task:
        inputs = [
            _write_input(Path(folder, f"{name}.npz"), side) for name, side in zip(NAMES, sides, strict=True)
        ]
        table, shown = _Table(sides, inputs, timing), 0.0
        blocks: _Blocks | None = None
        try:
            while _time_for_another(turns, time.monotonic() - started, timing.max_seconds):
                turn, blocks = table.turn(order, blocks)
                turns.append(turn)
                figures, now = done(turns), time.monotonic() - started
                task.advance(min(now, timing.max_seconds) - shown, **(figures or {}))
                shown = min(now, timing.max_seconds)
                if figures is None:
                    break
        except KeyboardInterrupt:
            if not turns:
                raise
            failure = StoppedError(_STOPPED)
        except ToolchainError as error:  # whatever else came of it, a model that was replaced is said to be
            failure = _replaced(sides) or error
            if not turns:
                raise failure from error
        failure = failure or _replaced(sides)
    return Series(tuple(turns), time.monotonic() - started, blocks.calls if blocks else 0, failure)


def _replaced(sides: Sequence[Side]) -> ToolchainError | None:
    try:
        for side in sides:
            side.require_unchanged()
    except ToolchainError as error:
        return error
    return None


def _time_for_another(turns: Sequence[Turn], spent: float, most: float) -> bool:
    return not turns or spent + spent / len(turns) <= most


def _write_input(path: Path, side: Side) -> Path:
    try:
        write_feed(path, side.prepared.feed)
    except OSError as error:
        raise HostError(f"{path.parent}: the input cannot be written ({error.strerror})") from error
    return path


@dataclass(frozen=True)
class _Blocks:
    """Calls a block and pairs of blocks a turn, found out in the first turn."""

    calls: int
    pairs: int

    @classmethod
    def lasting(cls, timing: Timing, call_ns: float) -> _Blocks:
        """As many as the timing wants, of calls that take so long."""
        wanted = 1e9 * timing.block_seconds / max(call_ns, 1.0)
        calls = min(_MOST, max(_FEWEST, math.ceil(wanted / (1 - _DROPPED))))
        pairs = int(1e9 * timing.turn_seconds / (2 * calls * max(call_ns, 1.0)))
        return cls(calls, min(timing.pairs, max(2, pairs - pairs % 2)))


@dataclass(frozen=True)
class _Table:
    """Where turns are played."""

    sides: Sequence[Side]
    inputs: Sequence[Path]
    timing: Timing

    def turn(self, order: random.Random, blocks: _Blocks | None) -> tuple[Turn, _Blocks]:
        """One turn of such blocks; what they are is found out when it is not known."""
        with ExitStack() as stack:
            workers: dict[int, WorkerProcess] = {}
            told: dict[int, Mapping[str, JSON]] = {}
            for k in order.sample((0, 1), 2):  # one after the other: a start is timed, too
                started = WorkerProcess(
                    NAMES[k], self.sides[k].file, self.inputs[k], self.timing.setup, self.timing.patience
                )
                workers[k] = stack.enter_context(started)
                told[k] = workers[k].answer()
                self.sides[k].require_unchanged(tuple(told[k]["state"]))
            blocks = blocks or _Blocks.lasting(self.timing, max(told[k]["call_ns"] for k in (0, 1)))
            samples: tuple[list[list[int]], list[list[int]]] = ([], [])
            for first in order.sample([k % 2 for k in range(blocks.pairs)], blocks.pairs):
                for k in (first, 1 - first):
                    samples[k].append(workers[k].ask({"calls": blocks.calls})["samples_ns"])
            ends = [workers[k].ask({}) for k in (0, 1)]
            for worker in workers.values():
                worker.finish()
        base, candidate = (_half(samples[k], told[k], ends[k]) for k in (0, 1))
        return Turn(base, candidate, max(1, int(_DROPPED * blocks.calls))), blocks


def _half(samples: list[list[int]], ready: Mapping[str, JSON], end: Mapping[str, JSON]) -> Half:
    return Half(
        tuple(map(tuple, samples)), ready["session_ns"], ready["first_answer_ns"], end["peak_bytes"],
    )  # fmt: skip
