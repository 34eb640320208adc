"""Saved records of quiet and busy hours: how often is a file called slower than itself, or a slower one green?

    python benchmarks/compare/saved.py [--count 10] [--folder runs/compare_saved]

As `toolchain bench MODEL --json` makes them: records of three models, chains of 20, 21 and 22 equal convolutions (5 and
10 % more work), in random order, each beside none, one or two neighbours that compute or copy memory all the time. Then
every pair is compared as `toolchain compare A.json B.json` does, in both directions where it is one model. Started again,
it goes on with the records that are missing. Writes benchmarks/results/compare_saved.ISA.json. Pass: at most 1 % of the
pairs of one model are called a regression against a bound of 5 %, and at most 1 % of the slower ones pass; exit 1
otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import replay
from planted import chain

from toolchain.compare.gates import Gates
from toolchain.compare.model import Check
from toolchain.compare.records import record_checks
from toolchain.runtime.bench import Asked, Sampling, bench
from toolchain.runtime.bench_record import BenchRecord, read
from toolchain.runtime.whole import write_whole

LAYERS = (20, 21, 22)
BOUND = 5.0
NEIGHBOURS = {
    "computes": "while True: sum(range(100_000))",
    "copies memory": "import numpy as np\na = np.ones(40_000_000); b = np.empty_like(a)\nwhile True: np.copyto(b, a)",
}
_KINDS = ((), ("computes",), ("copies memory",), ("computes", "computes"), ("copies memory", "copies memory"))


def main() -> int:
    """Make the records that are missing, compare all pairs, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10, help="records a model [10]")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare_saved"))
    asked = parser.parse_args()
    if asked.count < 2:
        parser.error("--count must be at least 2: pairs are compared")
    asked.folder.mkdir(parents=True, exist_ok=True)
    jobs = [(layers, number) for layers in LAYERS for number in range(asked.count)]
    for layers, number in random.Random(0).sample(jobs, len(jobs)):
        make(asked.folder, layers, number)
    records = {
        layers: [read(place(asked.folder, layers, k)) for k in range(asked.count)] for layers in LAYERS
    }
    rows = [row(records, LAYERS[0], layers) for layers in LAYERS]
    passed = rows[0]["regression"] <= 0.01 * rows[0]["pairs"] and all(
        one["pass"] <= 0.01 * one["pairs"] for one in rows[1:]
    )
    what = (
        f"Saved records of quiet and busy hours against a bound of {BOUND:g} %: {asked.count} of each model, "
        f"{Sampling().cold_starts} fresh processes each, every pair compared"
    )
    path = replay.write(
        "compare_saved", {"what": what, "rows": rows, "passed": passed, "records": kept(records)}
    )
    print(f"{path}: {'pass' if passed else 'FAIL'}")
    for one in rows:
        print(one)
    return 0 if passed else 1


def place(folder: Path, layers: int, number: int) -> Path:
    """Where a record lies."""
    return folder / f"{layers}-{number}.json"


def beside(number: int) -> tuple[str, ...]:
    """The neighbours of a record: each kind as often, in every model."""
    return _KINDS[number % len(_KINDS)]


def make(folder: Path, layers: int, number: int) -> None:
    """One record beside its neighbours, unless it is there."""
    path = place(folder, layers, number)
    if path.exists():
        return
    with neighbours(beside(number)):
        record = bench(chain(layers, folder / f"chain{layers}.onnx"), Asked(sampling=Sampling(blocks=6)))
    write_whole(path, json.dumps(record.as_json()).encode())
    print(f"{path.name} beside {', '.join(beside(number)) or 'nobody'}", flush=True)


@contextlib.contextmanager
def neighbours(kinds: Sequence[str]) -> Iterator[None]:
    """Processes that work all the time."""
    busy = [subprocess.Popen([sys.executable, "-c", NEIGHBOURS[kind]]) for kind in kinds]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def latency(base: BenchRecord, candidate: BenchRecord) -> Check:
    """What `toolchain compare` says of two records' latency."""
    return record_checks(base, candidate, Gates(latency=BOUND))[0]


def row(records: dict[int, list[BenchRecord]], base: int, candidate: int) -> dict[str, Any]:
    """All pairs of two models, or of one with itself in both directions."""
    pairs = itertools.product(records[base], records[candidate])
    if base == candidate:
        pairs = itertools.permutations(records[base], 2)
    both = list(pairs)
    checks = [latency(*pair) for pair in both]
    counts = Counter(check.verdict for check in checks)
    plain = [float(np.median(b.cases[0].blocks) / np.median(a.cases[0].blocks)) for a, b in both]
    ratios = [check.value or 0.0 for check in checks]
    return {
        "candidate": "the same file" if base == candidate else f"{100 * (candidate - base) / base:g} % more work",
        "pairs": len(both), **{name: counts[name] for name in ("regression", "pass", "inconclusive")},
        "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        "ratios of their p50": [round(min(plain), 2), round(max(plain), 2)],
    }  # fmt: skip


def kept(records: dict[int, list[BenchRecord]]) -> list[dict[str, Any]]:
    """Of each record what the comparison is made of."""
    return [
        {
            "layers": layers, "beside": list(beside(number)), "p50_ns": float(np.median(one.cases[0].blocks)),
            "relative": [round(value, 4) for value in one.cases[0].cold_start_ns.relative],
            "share": [round(value, 4) for value in one.cases[0].cold_start_ns.share],
        }
        for layers, some in records.items() for number, one in enumerate(some) if one.cases[0].cold_start_ns
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
