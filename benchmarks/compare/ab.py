"""A file against itself with one more layer: is the slowdown found, and how soon?

    python benchmarks/compare/ab.py [--case 5 | --case 2] [--replays 10000] [--confirm 600]

case 5: a layer in 20, 5 % of the multiplications, against a bound of 2 %: 60 comparisons of at most 90 s.
case 2: a layer in 50, 2 %, against 0.5 %: 20 comparisons of at most 5 minutes. Without --case, both.
--confirm: seconds of a long run (best on a quiet machine) that measures what the layer really costs.
Each comparison is one line of runs/compare_ab_CASE.jsonl; started again, it goes on after the last. Writes
benchmarks/results/compare_ab.ISA.json. Pass: regressions in at least 57 of 60 and in 16 of 20; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import replay
from planted import chain, macs

from toolchain.compare import live, sides
from toolchain.compare.live import Timing, Turn
from toolchain.compare.sequential import estimate
from toolchain.progress import Silent
from toolchain.runtime.bench_input import Wish
from toolchain.runtime.fresh import Setup


@dataclass(frozen=True)
class Case:
    """A planted slowdown: layers of the base, the bound in percent, how many comparisons of how many seconds."""

    layers: int
    bound: float
    count: int
    seconds: float
    needed: float


CASES = {"5": Case(20, 2.0, 60, 90.0, 57 / 60), "2": Case(50, 0.5, 20, 300.0, 16 / 20)}


def main() -> int:
    """Compare, replay, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--count", type=int, help="comparisons of a case [60, 20]")
    parser.add_argument("--seconds", type=float, help="the most that one may take [90, 300]")
    parser.add_argument("--replays", type=int, default=10_000)
    parser.add_argument("--confirm", type=float, default=0.0)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--name", default="compare_ab", help="of the record")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = {name: run(name, case, asked) for name, case in CASES.items() if asked.case in (None, name)}
    passed = all(
        one["row"]["regression"] >= CASES[name].needed * one["row"]["live"] for name, one in found.items()
    )
    what = "A slowdown planted by one more layer: comparisons that call it a regression"
    record = {
        "what": what, "rows": [one["row"] for one in found.values()], "passed": passed,
        "replays": {name: one["replays"] for name, one in found.items()},
        "comparisons": {name: one["comparisons"] for name, one in found.items()},
    }  # fmt: skip
    path = replay.write(asked.name, record)
    print(f"{path}: {'pass' if passed else 'FAIL'}")
    for row in record["rows"]:
        print(row)
    return 0 if passed else 1


def run(name: str, case: Case, asked: argparse.Namespace) -> dict[str, Any]:
    """One case: its row of the table, its replays and all its comparisons."""
    base = chain(case.layers, asked.folder / f"ab_{name}_base.onnx")
    candidate = chain(case.layers + 1, asked.folder / f"ab_{name}_candidate.onnx")
    seconds, count, bounds = asked.seconds or case.seconds, asked.count or case.count, (case.bound,)
    true = confirmed(base, candidate, asked.confirm, asked.folder / f"compare_ab_{name}.confirmed.json")

    def one(number: int) -> replay.Row:
        return replay.compare(base, candidate, bounds, seconds, number)

    rows = replay.resume(asked.folder / f"compare_ab_{name}.jsonl", count, one)
    shares = replay.replay(rows, bounds, seconds, asked.replays)[f"{case.bound:g}"]
    by_macs = macs(case.layers + 1) / macs(case.layers)
    row = {
        "planted by MACs, %": round(100 * (by_macs - 1), 2), "bound, %": case.bound, "at most, s": seconds,
        "live": len(rows), **replay.counted(rows, f"{case.bound:g}"),
        "median seconds": float(np.median([r["seconds"] for r in rows])),
        "found in replays, %": round(100 * shares["regression"], 2),
        "long run, %": true and round(100 * (true["ratio"] - 1), 2),
        "long run ci99": true and [round(100 * (end - 1), 2) for end in true["ci99"]],
    }  # fmt: skip
    return {"row": row, "replays": shares, "comparisons": rows}


def confirmed(base: Path, candidate: Path, seconds: float, kept: Path) -> dict[str, Any] | None:
    """What a long run says of the true ratio; kept in a file, and asked again only for another --confirm."""
    if kept.exists() and not seconds:
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    if not seconds:
        return None
    (first, _), (second, _) = sides.find(base, candidate, "fused", Setup(), Wish())

    def never(turns: Sequence[Turn]) -> Mapping[str, float | str]:
        return {}

    series = live.run(first, second, Timing(max_seconds=seconds, seed=0), never, Silent())
    ratio = estimate(replay.figures(series.turns)[0])
    found = {
        "ratio": ratio.ratio,
        "ci99": [ratio.low, ratio.high],
        "turns": len(series.turns),
        "seconds": seconds,
    }
    kept.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    sys.exit(main())
