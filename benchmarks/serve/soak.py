"""Thirty minutes at 80 % of capacity with faults mixed in: wrong answers, crashes, slow ones, memory.

    python -m benchmarks.serve.soak --bundle BUNDLE [--minutes 30] [--log build/bench/soak.jsonl] [--out FILE]

Each minute has three parts, for the machine's pace changes: a fifth of it one client alone asks at a tenth of the last
minute's capacity; then faults begin, and capacity is what eight clients get beside them in a twelfth of it; then pictures
are asked for at 80 % of that, spread evenly over the clients. Each answer is compared bit by bit with a bare session's,
and timed from when its request was due, in the first part as in the last. The faults, one every 50 ms by turns: a client
that goes away within its body, one byte a second (slow-loris), garbage, a body that is too large, a picture bomb, a gzip
bomb. Every minute is a line of the log. Killed and started again with the same log, a run goes on with the minutes that
are left, under a new server. Pass: no wrong answer, no refusal of a good request, no crash, p99 under load and faults at
most 5 times the p99 of one client alone, over all minutes, memory in the last fifth at most 3 % above that in the second.
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


def minutes(bundle: Bundle, log: Path, wanted: int, length: float) -> list[dict[str, Any]]:
    """The minutes of the log, and those that were missing measured now and added to it."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if any("counted" not in row for row in done):
        raise SystemExit(f"{log}: of an earlier version; remove it")
    if len(done) >= wanted:
        return done[:wanted]
    log.parent.mkdir(parents=True, exist_ok=True)
    array = served.picture()
    expected = bundle.session().run({bundle.manifest.input.name: array[None]})[0].tobytes()
    with served.serving(bundle.folder) as server, log.open("a") as file:
        load = Load(server.port, served.infer(bundle, array), expected)
        capacity = load.capacity(length / 12)
        for number in range(len(done), wanted):
            alone = load.run(1, capacity / 10, length / 5)
            with disturbed(server.port) as counts:
                capacity = load.capacity(length / 12)
                found = load.run(CLIENTS, SHARE * capacity, length * (1 - 1 / 5 - 1 / 12))
            row = {
                "minute": number, "capacity, calls a s": round(capacity), "answers": len(found["ms"]),
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
    """The p99 of all minutes together."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row[name])
    return p99(total)


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All minutes as one line with its verdict."""
    loaded, alone = pooled(rows, "counted"), pooled(rows, "alone counted")
    total = {
        name: sum(row[name] for row in rows) for name in ("answers", "wrong", "refused", "broken", "crashed")
    }
    growth = 1.0
    for process in {row["server"] for row in rows}:  # a run that was taken up again had a new server
        held = [row["resident"] for row in rows if row["server"] == process]
        fifth = max(1, len(held) // 5)
        growth = max(growth, median(held[-fifth:]) / median(held[fifth : 2 * fifth] or held))
    bad = total["wrong"] + total["refused"] + total["broken"] + total["crashed"]
    kept = not bad and loaded <= SLOWER * alone and growth <= GROWTH
    ratio = round(loaded / alone, 2)
    figures = {
        "p99, ms": loaded,
        "alone p99, ms": alone,
        "of it": ratio,
        "memory, last / second fifth": round(growth, 3),
    }
    return {"minutes": len(rows), **total, **figures, "verdict": "kept" if kept else "missed"}


def main() -> int:
    """Measure what is missing, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a minute, for trying this out")
    parser.add_argument("--log", type=Path, default=Path("build/bench/soak.jsonl"))
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    rows = minutes(Bundle.load(asked.bundle), asked.log, asked.minutes, asked.seconds)
    row = judged(rows)
    what = "Load at 80 % of capacity with aborts, slow-loris, garbage, oversize and bombs mixed in"
    short = [{name: value for name, value in row.items() if not name.endswith("counted")} for row in rows]
    record = {"what": what, "rows": [row], "minutes": short, "interpreter": sys.version, "host": host.facts()}
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    print(row)
    return 0 if row["verdict"] == "kept" else 1


if __name__ == "__main__":
    sys.exit(main())
