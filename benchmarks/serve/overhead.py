"""What the server adds to a bare session call of the same picture: milliseconds, and CPU milliseconds.

    python -m benchmarks.serve.overhead [--bundle runs/quickstart/bundle] [--rounds 30] [--calls 30] [--out FILE]

Four sides by turns in random order, one client, one session thread: *session* calls it in this process with a 224 x 224
uint8 picture, *server* posts the same by the binary tensor extension; *decode + session* and *server, JPEG* do so with the
picture's JPEG file. A round is one block of calls a side. Overhead: the difference of the blocks' medians, median over
rounds, with a 95 % interval that draws rounds. CPU: what the server's process took a call, of all its threads, less what
this process takes for a bare call, over all rounds. Bars: 0.7 ms and 0.7 CPU ms for arrays, 1 ms for JPEG files.
Writes benchmarks/results/serve_overhead.ISA.json unless --out says another; exit code 1 when a bar is missed,
4 when an interval reaches across one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serve import served
from toolchain.runtime import host
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.pictures import decode

RESULT = Path(__file__).resolve().parents[1] / "results" / f"serve_overhead.{host.isa()}.json"
PAIRS = {"arrays": ("session", "server", 0.7), "JPEG files": ("decode + session", "server, JPEG", 1.0)}
CPU_BAR = 0.7


def sides(bundle: Bundle, client: served.Client) -> dict[str, Callable[[], object]]:
    """What is called, by name."""
    session = bundle.session()
    array = served.picture()
    feed = {bundle.manifest.input.name: array[None]}
    file = served.jpeg(array)
    asked = {"server": served.infer(bundle, array), "server, JPEG": served.predict(file)}
    (expected,) = session.run(feed)[0]
    status, content = client.ask(asked["server"])
    if status != 200 or not np.array_equal(served.answer_of(content), expected):
        raise SystemExit(f"the server answers otherwise than the session ({status})")
    return {
        "session": lambda: session.run(feed),
        "decode + session": lambda: bundle.predict([decode(file)], session),
        **{name: lambda request=request: client.ask(request) for name, request in asked.items()},
    }


def measure(bundle: Bundle, rounds: int, calls: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """({side: its blocks' medians in ms, by round}, {side: CPU ms a call})."""
    chance = random.Random(0)
    with served.serving(bundle.folder, "--threads", "1", "--workers", "1") as server:
        client = served.Client(server.port)
        made = sides(bundle, client)
        taken: dict[str, list[float]] = {name: [] for name in made}
        cpu = dict.fromkeys(made, 0.0)
        for number in range(-2, rounds):
            for name in chance.sample(list(made), len(made)):
                clock = server.cpu if name.startswith("server") else time.process_time
                start = clock()
                block = served.seconds_of(made[name], calls)
                if number >= 0:
                    taken[name].append(1000 * median(block))
                    cpu[name] += clock() - start
        client.close()
    return taken, {name: 1000 * seconds / rounds / (calls + 5) for name, seconds in cpu.items()}


def rows(taken: dict[str, list[float]], cpu: dict[str, float]) -> list[dict[str, Any]]:
    """A line a kind of request."""
    found = []
    for what, (bare, ours, bar) in PAIRS.items():
        added = np.array(taken[ours]) - np.array(taken[bare])
        drawn = np.random.default_rng(1).integers(0, len(added), (4000, len(added)))
        low, high = np.quantile(np.median(added[drawn], axis=1), (0.025, 0.975))
        added_cpu = cpu[ours] - cpu[bare]
        row: dict[str, Any] = {
            "requests": what, "bare, ms": round(median(taken[bare]), 3), "added, ms": round(float(np.median(added)), 3),
            "ci95": [round(float(low), 3), round(float(high), 3)], "bar, ms": bar, "added, CPU ms": round(added_cpu, 3),
        }  # fmt: skip
        cheap = what != "arrays" or added_cpu <= CPU_BAR
        found.append({**row, "verdict": served.verdict(cheap and high <= bar, low > bar or not cheap)})
    return found


def main() -> int:
    """Measure, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=served.BUNDLE)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    bundle = Bundle.load(asked.bundle)
    taken, cpu = measure(bundle, asked.rounds, asked.calls)
    found = rows(taken, cpu)
    record = {
        "what": f"What the server adds to a session call, one client, 224 x 224 pixels, {bundle.manifest.name}",
        "rows": found, "ms": taken, "cpu_ms": cpu, "interpreter": sys.version, "host": host.facts(),
    }  # fmt: skip
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    for row in found:
        print(
            f"{row['requests']}: +{row['added, ms']} ms {row['ci95']}, +{row['added, CPU ms']} CPU ms: {row['verdict']}"
        )
    return served.exit_code(row["verdict"] for row in found)


if __name__ == "__main__":
    sys.exit(main())
