"""Thirty minutes at 80 % of capacity with faults mixed in: wrong answers, crashes, slow ones, memory.

    python -m benchmarks.serve.soak --bundle BUNDLE [--minutes 30] [--log build/bench/soak.jsonl] [--out FILE]

The time goes in turns of six seconds, for the machine's pace changes: one client alone asks at a tenth of the last turn's
capacity; then faults begin, and when there was one of each, capacity is what eight clients get beside them; then, for half
of the turn, pictures are asked for at 80 % of that, spread evenly over the clients; then capacity is measured again. Each
answer is compared bit by bit with a bare session's, and timed from when its request was due, in the first part as in the
load. The faults, one every 50 ms by turns: a client that goes away within its body, one byte a second (slow-loris),
garbage, a body that is too large, a picture bomb, a gzip bomb. Told beside: the same over the turns whose two capacities
differ by at most 15 %, which were surely at 80 % of it. Capacity is held against the machine's pace, the time of a bare
session's call in the client's process, measured in each turn while the server rests: a server that grows slow is not
excused by the machine. Every turn is a line of the log. Killed and started again with the same log, a run goes on with the
turns that are left, under a new server. Pass: no wrong answer, no refusal of a good request, no crash; over all turns, p99
under load and faults at most 5 times the p99 of one client alone; memory in the last fifth at most 3 % above that in the
second, capacity at the machine's pace at most 5 % below it.
Writes benchmarks/results/serve_soak.ISA.json unless --out says another; exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serve import served
from benchmarks.serve.faults import Faults
from toolchain.runtime import host
from toolchain.runtime.bundle import Bundle

RESULT = Path(__file__).resolve().parents[1] / "results" / f"serve_soak.{host.isa()}.json"
CLIENTS = 8
SHARE, SLOWER, GROWTH = 0.8, 5.0, 1.03
TURN, ALONE, PACE, WARM, CAPACITY = (
    6.0,
    1.0,
    0.4,
    0.4,
    0.8,
)  # seconds of a turn, and of its parts but the load
STEADY, KEPT = 1.15, 0.95
STEP = 1.02  # of the histogram that keeps the milliseconds


@dataclass
class Answers:
    """What clients got: milliseconds of each good answer, from when it was due, and how many were bad."""

    ms: list[float] = field(default_factory=list)
    wrong: int = 0
    refused: int = 0
    broken: int = 0

    def __add__(self, other: Answers) -> Answers:
        return Answers(
            self.ms + other.ms,
            self.wrong + other.wrong,
            self.refused + other.refused,
            self.broken + other.broken,
        )


class Load:
    """Clients that ask at a given rate and compare each answer. `all`: what they got of it, the whole turn."""

    def __init__(self, port: int, request: bytes, expected: bytes) -> None:
        self._port, self._request, self._expected = port, request, expected
        self.all = Answers()

    def run(self, clients: int, rate: float, seconds: float) -> Answers:
        """Ask `rate` times a second together (0: as often as can be)."""
        end, every = time.monotonic() + seconds, clients / rate if rate else 0.0
        with ThreadPoolExecutor(clients) as pool:
            parts = list(pool.map(lambda n: self._client(every, end, n / clients), range(clients)))
        found = sum(parts, Answers())
        self.all += found
        return found

    def capacity(self, seconds: float) -> float:
        """Good answers a second to clients that ask as often as they can, until the last one has its answer."""
        begun = time.monotonic()
        return len(self.run(CLIENTS, 0, seconds).ms) / (time.monotonic() - begun)

    def _client(self, every: float, end: float, phase: float) -> Answers:
        found, client = Answers(), served.Client(self._port)
        due = time.monotonic() + phase * every
        while (now := time.monotonic()) < end:
            if now < due:
                time.sleep(due - now)
            start = time.perf_counter()
            try:
                status, content = client.ask(self._request)
            except OSError:
                found.broken += 1
                client = served.Client(self._port)
                continue
            if status != 200:
                found.refused += 1
            elif not content.endswith(self._expected):
                found.wrong += 1
            else:  # from when it was due: what waits behind a slow answer is slow as well
                late = max(0.0, now - due) if every else 0.0
                found.ms.append(1000 * (time.perf_counter() - start + late))
            due += every
        client.close()
        return found


def turns(bundle: Bundle, log: Path, wanted: int) -> list[dict[str, Any]]:
    """The turns of the log, and those that were missing measured now and added to it; none after a crash."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if any(row.get("bundle") != bundle.manifest.identity for row in done):
        raise SystemExit(f"{log}: of another bundle or version; remove it, or name another --log")
    log.parent.mkdir(parents=True, exist_ok=True)
    array = served.picture()
    session, feed = bundle.session(), {bundle.manifest.input.name: array[None]}
    expected = session.run(feed)[0].tobytes()
    if len(done) >= wanted:
        return done[:wanted]
    with served.serving(bundle.folder) as server, log.open("a") as file:
        load = Load(server.port, served.infer(bundle, array), expected)
        capacity, faults = load.capacity(CAPACITY), Faults(server.port)
        try:
            while len(done) < wanted and not any(row["crashed"] for row in done):
                row = turn(server, load, faults, capacity, lambda: session.run(feed))
                capacity = row["capacity, calls a s"][1]
                done.append({"turn": len(done), "bundle": bundle.manifest.identity} | row)
                file.write(json.dumps(done[-1]) + "\n")
                file.flush()
                print({key: value for key, value in done[-1].items() if "counted" not in key}, flush=True)
        finally:
            faults.stop()
    return done


def turn(
    server: served.Server, load: Load, faults: Faults, capacity: float, bare: Callable[[], object]
) -> dict[str, Any]:
    """Alone, the machine's pace, capacity, load, capacity: a row of the log. capacity: that of the turn before."""
    load.all = Answers()
    alone, pace = load.run(1, capacity / 10, ALONE), 1000 * median(served.seconds_for(bare, PACE))
    with faults.active():
        load.run(CLIENTS, SHARE * capacity, WARM)
        before = load.capacity(CAPACITY)
        loaded = load.run(CLIENTS, SHARE * before, TURN - ALONE - PACE - WARM - 2 * CAPACITY)
        after = load.capacity(CAPACITY)
    crashed = server.process.poll() is not None
    return {
        "pace, ms": round(pace, 3), "capacity, calls a s": [round(before, 1), round(after, 1)],
        "answers": len(load.all.ms), "wrong": load.all.wrong, "refused": load.all.refused, "broken": load.all.broken,
        "p99, ms": p99(counted(loaded.ms)), "alone p99, ms": p99(counted(alone.ms)),
        "resident": 0 if crashed else server.resident(), "crashed": crashed, "server": server.process.pid,
        "faults so far": dict(faults.counts), "counted": counted(loaded.ms), "alone counted": counted(alone.ms),
    }  # fmt: skip


def counted(values: list[float]) -> dict[str, int]:
    """How many milliseconds lie in each step of 2 %, by the step's number."""
    steps = np.floor(np.log(values) / np.log(STEP)).astype(int)
    return {str(step): int(count) for step, count in zip(*np.unique(steps, return_counts=True), strict=True)}


def p99(counts: Mapping[str, int]) -> float:
    """Milliseconds, to 2 %."""
    if not counts:
        return math.nan
    total, seen = sum(counts.values()), 0
    for step in sorted(map(int, counts)):
        seen += counts[str(step)]
        if seen >= 0.99 * total:
            break
    return round(float(STEP ** (step + 0.5)), 2)


def pooled(rows: list[dict[str, Any]], name: str) -> float:
    """The p99 of all turns together."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row[name])
    return p99(total)


def steady(row: Mapping[str, Any]) -> bool:
    """Whether capacity was after the load what it had been before."""
    before, after = row["capacity, calls a s"]
    return max(before, after) <= STEADY * min(before, after)


def _by_server(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The turns of each server; a run that was taken up again had a new one."""
    return [
        [row for row in rows if row["server"] == one] for one in dict.fromkeys(row["server"] for row in rows)
    ]


def _fifths(values: list[float]) -> float:
    """The median of the last fifth over that of the second."""
    fifth = max(1, len(values) // 5)
    return median(values[-fifth:]) / median(values[fifth : 2 * fifth] or values)


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All turns as one line with its verdict."""
    loaded, alone = pooled(rows, "counted"), pooled(rows, "alone counted")
    even = [row for row in rows if steady(row)]
    total = {
        name: sum(row[name] for row in rows) for name in ("answers", "wrong", "refused", "broken", "crashed")
    }
    growth = max(_fifths([row["resident"] for row in one]) for one in _by_server(rows))
    work = [
        [sum(row["capacity, calls a s"]) / 2 * row["pace, ms"] for row in one] for one in _by_server(rows)
    ]
    held = min(map(_fifths, work))
    bad = total["wrong"] + total["refused"] + total["broken"] + total["crashed"]
    kept = not bad and loaded <= SLOWER * alone and growth <= GROWTH and held >= KEPT
    ratio = round(loaded / alone, 2)
    figures = {
        "p99, ms": loaded,
        "alone p99, ms": alone,
        "of it": ratio,
        "of it at steady capacity": round(pooled(even, "counted") / pooled(even, "alone counted"), 2)
        if even
        else None,
        "memory, last / second fifth": round(growth, 3),
        "capacity at the machine's pace": round(held, 3),
    }
    return {
        "turns": len(rows),
        "at steady capacity": len(even),
        **total,
        **figures,
        "verdict": "kept" if kept else "missed",
    }


def main() -> int:
    """Measure what is missing, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--log", type=Path, default=Path("build/bench/soak.jsonl"))
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    bundle = Bundle.load(asked.bundle)
    rows = turns(bundle, asked.log, max(1, round(60 * asked.minutes / TURN)))
    row = judged(rows)
    what = "Load at 80 % of capacity with aborts, slow-loris, garbage, oversize and bombs mixed in"
    columns = ("pace, ms", "capacity, calls a s", "p99, ms", "alone p99, ms", "resident")
    by_turn = {name: json.dumps([one[name] for one in rows]) for name in columns}
    record = {
        "what": f"{what}: {bundle.manifest.name}, by turns of {TURN:g} s", "rows": [row], "by turn": by_turn,
        "faults of the last server": rows[-1]["faults so far"], "interpreter": sys.version, "host": host.facts(),
    }  # fmt: skip
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    print(row)
    return 0 if row["verdict"] == "kept" else 1


if __name__ == "__main__":
    sys.exit(main())
