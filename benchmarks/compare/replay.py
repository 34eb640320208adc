"""What aa.py and ab.py share: comparisons as lines of a log, a load on the other core, and replays from recorded blocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.compare import live, sides
from toolchain.compare.gates import Gates
from toolchain.compare.live import Timing, Turn
from toolchain.compare.sequential import decide
from toolchain.progress import Silent
from toolchain.runtime import host
from toolchain.runtime.bench_input import Wish
from toolchain.runtime.fresh import Setup

RESULTS = Path(__file__).resolve().parents[1] / "results"
# A neighbour: bursts of matrix products of 20 to 500 ms, and pauses as long.
_LOAD = """
import random, time
import numpy as np
a = np.random.rand(300, 300)
while True:
    end = time.monotonic() + random.uniform(0.02, 0.5)
    while time.monotonic() < end:
        a @ a
    time.sleep(random.uniform(0.02, 0.5))
"""
_MOST = 1 + (Gates().typical or 0) / 100
Row = dict[str, Any]


@contextmanager
def load(wanted: bool) -> Iterator[None]:
    """A process that works in bursts on the last core while the context is open."""
    if not wanted:
        yield
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", _LOAD], env=environment)
    try:
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def compare(base: Path, candidate: Path, bounds: Sequence[float], seconds: float, seed: int) -> Row:
    """One live comparison, until every bound is decided or the time is up, as a line of the log.

    blocks: for every turn, ns of the fastest and of the median call of each block, [2 sides, pairs] each.
    """
    (first, _), (second, _) = sides.find(base, candidate, "fused", Setup(), Wish())

    def done(turns: Sequence[Turn]) -> Mapping[str, float | str] | None:
        found = verdicts(figures(turns), bounds)
        return {} if any(verdict == "inconclusive" for verdict, _ in found.values()) else None

    started = time.monotonic()
    series = live.run(first, second, Timing(max_seconds=seconds, seed=seed), done, Silent())
    if series.failure is not None:
        raise series.failure
    return {
        "seconds": round(time.monotonic() - started, 2), "turns": len(series.turns), "load": os.getloadavg()[0],
        "verdicts": verdicts(figures(series.turns), bounds),
        "blocks": [[turn.fastest.tolist(), turn.medians.round().astype(int).tolist()] for turn in series.turns],
    }  # fmt: skip


def figures(turns: Sequence[Turn]) -> NDArray[np.float64]:
    """Log ratios [2, n]: of the fastest calls, of the median calls."""
    return np.array([[t.log_ratio for t in turns], [t.typical_log_ratio for t in turns]])


def verdicts(found: NDArray[np.float64], bounds: Sequence[float]) -> dict[str, tuple[str, int]]:
    """The verdict and the turn at which it fell, for each bound in percent."""
    return {f"{bound:g}": decide(found[0], found[1], 1 + bound / 100, _MOST) for bound in bounds}


def resume(log: Path, count: int, one: Callable[[int], Row]) -> list[Row]:
    """The rows of a log, and those that are missing until there are `count`, made and appended one by one.

    A line that a kill cut short is made again.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    if log.exists():
        for line in log.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(len(rows), count):
        row = {"number": number} | one(number)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        if "blocks" not in row and (number + 1) % 100:
            continue  # simulations are quick
        told = {k: v for k, v in row.items() if k != "blocks"}
        print(f"{number + 1} of {count}: {told}", file=sys.stderr, flush=True)
    return rows[:count]


def replay(
    rows: Sequence[Row], bounds: Sequence[float], seconds: float, count: int
) -> dict[str, dict[str, float]]:
    """Shares of verdicts of `count` comparisons, each put together from recorded turns and their recorded pairs.

    A replay has as many turns as the recorded ones would have had time for in `seconds`. Turns are drawn with
    replacement from all rows, and in each turn its pairs of blocks again: the same turn is never quite the same.
    """
    rng = np.random.default_rng(20150715)
    recorded = [np.array(b, np.float64) for row in rows for b in row["blocks"]]  # [2 figures, 2 sides, pairs]
    fewest = min(b.shape[2] for b in recorded)
    blocks = np.stack([b[:, :, :fewest] for b in recorded])
    most = max(1, int(seconds / np.median([row["seconds"] / row["turns"] for row in rows])))
    found: dict[str, list[str]] = {f"{bound:g}": [] for bound in bounds}
    lasted: dict[str, list[int]] = {f"{bound:g}": [] for bound in bounds}
    for _ in range(count):
        drawn = blocks[rng.integers(len(blocks), size=most)]  # [turns, 2 figures, 2 sides, pairs]
        again = rng.integers(fewest, size=(most, 1, 1, fewest))
        drawn = np.take_along_axis(drawn, np.broadcast_to(again, drawn.shape), axis=3)
        series = np.median(np.log(drawn[:, :, 1] / drawn[:, :, 0]), axis=2).T  # [2 figures, turns]
        for bound, (verdict, turns) in verdicts(series, bounds).items():
            found[bound].append(verdict)
            lasted[bound].append(turns)
    return {
        bound: {
            **{kind: given.count(kind) / count for kind in ("pass", "regression", "inconclusive")},
            "turns_median": float(np.median(lasted[bound])), "turns_most": most,
        }
        for bound, given in found.items()
    }  # fmt: skip


def counted(rows: Sequence[Row], bound: str) -> dict[str, int]:
    """How often each verdict was given."""
    given = [row["verdicts"][bound][0] for row in rows]
    return {kind: given.count(kind) for kind in ("pass", "regression", "inconclusive")}


def write(name: str, record: Mapping[str, Any]) -> Path:
    """Write the record of this machine kind."""
    path = RESULTS / f"{name}.{host.isa()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**record, "host": host.facts()}, indent=1) + "\n", encoding="utf-8")
    return path
