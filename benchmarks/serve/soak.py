"""Thirty minutes at 80 % of capacity with faults mixed in: wrong answers, crashes, slow ones, memory.

    python -m benchmarks.serve.soak --bundle BUNDLE [--minutes 30] [--log build/bench/soak.jsonl] [--out FILE]

The time goes in turns of six seconds, for the machine's pace changes: one client alone asks at a tenth of the last turn's
capacity; then faults begin, and capacity is what eight clients get beside them; then, for half of the turn, pictures are
asked for at 80 % of that, spread evenly over the clients; then capacity is measured again. Each answer is compared bit by
bit with a bare session's, and timed from when its request was due, in the first part as in the load. The faults, one every
50 ms by turns: a client that goes away within its body, one byte a second (slow-loris), garbage, a body that is too large,
a picture bomb, a gzip bomb. A turn whose two capacities differ by more than 15 % was not at 80 % of capacity: its latencies
are told, and do not judge; all else of it does. That this hides no server that grows slow: capacity is held against the
machine's pace, the time of a bare session's call in the client's process, measured in each turn while the server rests.
Every turn is a line of the log. Killed and started again with the same log, a run goes on with the turns that are left,
under a new server. Pass: no wrong answer, no refusal of a good request, no crash in any turn; over the turns at steady
capacity, which must be a third of all at least, p99 under load and faults at most 5 times the p99 of one client alone, over
the same turns; memory in the last fifth at most 3 % above that in the second, capacity at the machine's pace at most 5 %
below it.
Writes benchmarks/results/serve_soak.ISA.json unless --out says another; exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import math
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serve import served
from toolchain.runtime import host
from toolchain.runtime.bundle import Bundle

RESULT = Path(__file__).resolve().parents[1] / "results" / f"serve_soak.{host.isa()}.json"
CLIENTS = 8
SHARE, SLOWER, GROWTH = 0.8, 5.0, 1.03
TURN, ALONE, PACE, CAPACITY = 6.0, 1.0, 0.4, 0.8  # seconds of a turn, and of its parts but the load
STEADY, ENOUGH, KEPT = 1.15, 1 / 3, 0.95
STEP = 1.02  # of the histogram that keeps the milliseconds


class Load:
    """Clients that ask at a given rate and compare each answer."""

    def __init__(self, port: int, request: bytes, expected: bytes) -> None:
        self._port, self._request, self._expected = port, request, expected

    def run(self, clients: int, rate: float, seconds: float) -> dict[str, Any]:
        """Ask `rate` times a second together (0: as often as can be); milliseconds, wrong answers, refusals."""
        found: dict[str, Any] = {"ms": [], "wrong": 0, "refused": 0, "broken": 0}
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(
                target=self._client, args=(found, clients / rate if rate else 0, end, index / clients)
            )
            for index in range(clients)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        return found

    def capacity(self, seconds: float) -> float:
        """Answers a second to clients that ask as often as they can."""
        return len(self.run(CLIENTS, 0, seconds)["ms"]) / seconds

    def _client(self, found: dict[str, Any], every: float, end: float, phase: float) -> None:
        client = served.Client(self._port)
        due = time.monotonic() + phase * every
        while (now := time.monotonic()) < end:
            if now < due:
                time.sleep(due - now)
            start = time.perf_counter()
            try:
                status, content = client.ask(self._request)
            except OSError:
                found["broken"] += 1
                client = served.Client(self._port)
                continue
            # From when it was due: what waits behind a slow answer is slow as well.
            late = max(0.0, now - due) if every else 0.0
            found["ms"].append(1000 * (time.perf_counter() - start + late))
            found["refused"] += status != 200
            found["wrong"] += status == 200 and not content.endswith(self._expected)
            due += every
        client.close()


def faults(port: int, stop: threading.Event, counts: dict[str, int]) -> None:
    """One fault after the other until told to stop; slow ones stay open until the server closes them."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: "
    bomb = _png(100_000, 100_000)
    packed = gzip.compress(bytes(64 << 20))
    sent = {
        "aborted": head + b"100000\r\n\r\n" + bytes(50_000), "slow": b"GET / HT", "garbage": bytes(range(256)) * 8,
        "oversize": head + b"99999999999\r\n\r\n", "bomb": head + b"%d\r\n\r\n" % len(bomb) + bomb,
        "gzip bomb": head + b"%d\r\nContent-Encoding: gzip\r\n\r\n" % len(packed) + packed,
    }  # fmt: skip
    kept: list[socket.socket] = []
    number = 0
    while not stop.wait(0.05):
        name = list(sent)[number % len(sent)]
        number += 1
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            client.sendall(sent[name])
            counts[name] = counts.get(name, 0) + 1
        except OSError:
            continue
        if name == "slow":
            kept.append(client)
        else:
            client.close()
        while len(kept) > 100:
            kept.pop(0).close()
    for one in kept:
        one.close()


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def turns(bundle: Bundle, log: Path, wanted: int) -> list[dict[str, Any]]:
    """The turns of the log, and those that were missing measured now and added to it."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if any("turn" not in row for row in done):
        raise SystemExit(f"{log}: of an earlier version; remove it")
    if len(done) >= wanted:
        return done[:wanted]
    log.parent.mkdir(parents=True, exist_ok=True)
    array = served.picture()
    session, feed = bundle.session(), {bundle.manifest.input.name: array[None]}
    expected = session.run(feed)[0].tobytes()

    def pace() -> float:
        """Median milliseconds of a bare call now."""
        end, taken = time.monotonic() + PACE, []
        while time.monotonic() < end:
            start = time.perf_counter()
            session.run(feed)
            taken.append(time.perf_counter() - start)
        return 1000 * median(taken)

    with served.serving(bundle.folder) as server, log.open("a") as file:
        load = Load(server.port, served.infer(bundle, array), expected)
        capacity = load.capacity(CAPACITY)
        for number in range(len(done), wanted):
            alone, bare = load.run(1, capacity / 10, ALONE), pace()
            with disturbed(server.port) as counts:
                before = load.capacity(CAPACITY)
                found = load.run(CLIENTS, SHARE * before, TURN - ALONE - PACE - 2 * CAPACITY)
                capacity = load.capacity(CAPACITY)
            row = {
                "turn": number, "pace, ms": round(bare, 3),
                "capacity, calls a s": [round(before, 1), round(capacity, 1)], "answers": len(found["ms"]),
                "wrong": found["wrong"], "refused": found["refused"], "broken": found["broken"],
                "p99, ms": p99(counted(found["ms"])), "alone p99, ms": p99(counted(alone["ms"])),
                "resident": server.resident(), "crashed": server.process.poll() is not None,
                "server": server.process.pid, "faults": counts,
            }  # fmt: skip
            print({key: value for key, value in row.items() if key != "faults"}, flush=True)
            row |= {"counted": counted(found["ms"]), "alone counted": counted(alone["ms"])}
            file.write(json.dumps(row) + "\n")
            file.flush()
            done.append(row)
    return done


@contextlib.contextmanager
def disturbed(port: int) -> Iterator[dict[str, int]]:
    """Faults in a thread of their own; how many of each kind."""
    stop, counts = threading.Event(), dict[str, int]()
    disturbing = threading.Thread(target=faults, args=(port, stop, counts))
    disturbing.start()
    try:
        yield counts
    finally:
        stop.set()
        disturbing.join()


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
    even = [row for row in rows if steady(row)]
    loaded, alone = pooled(even, "counted"), pooled(even, "alone counted")
    total = {
        name: sum(row[name] for row in rows) for name in ("answers", "wrong", "refused", "broken", "crashed")
    }
    growth = max(_fifths([row["resident"] for row in one]) for one in _by_server(rows))
    work = [
        [sum(row["capacity, calls a s"]) / 2 * row["pace, ms"] for row in one] for one in _by_server(rows)
    ]
    held = min(map(_fifths, work))
    bad = total["wrong"] + total["refused"] + total["broken"] + total["crashed"]
    enough = len(even) >= ENOUGH * len(rows)
    kept = not bad and enough and loaded <= SLOWER * alone and growth <= GROWTH and held >= KEPT
    ratio = round(loaded / alone, 2)
    figures = {
        "p99, ms": loaded,
        "alone p99, ms": alone,
        "of it": ratio,
        "of it in all turns": round(pooled(rows, "counted") / pooled(rows, "alone counted"), 2),
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
    rows = turns(bundle, asked.log, round(60 * asked.minutes / TURN))
    row = judged(rows)
    what = "Load at 80 % of capacity with aborts, slow-loris, garbage, oversize and bombs mixed in"
    short = [{name: value for name, value in row.items() if not name.endswith("counted")} for row in rows]
    record = {
        "what": what,
        "rows": [row],
        "model": bundle.manifest.name,
        "turns": short,
        "interpreter": sys.version,
        "host": host.facts(),
    }
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    print(row)
    return 0 if row["verdict"] == "kept" else 1


if __name__ == "__main__":
    sys.exit(main())
