"""A file against itself: how often is it called slower, and how often does it pass?

    python benchmarks/compare/aa.py [--count 200] [--seconds 30] [--model FILE.onnx] [--replays 10000]

Every second comparison has a neighbour that works in bursts on the last core. Each is one line of the log
(runs/compare_aa.jsonl); started again, it goes on after the last line. Then as many replays are put together from
the recorded blocks. Writes benchmarks/results/compare_aa.ISA.json. Pass: at most 1 % called a regression at 2 or
5 %, live and in replays, and at least 90 % of the live ones pass at 5 %; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import replay
from planted import chain

BOUNDS = (2.0, 5.0)
LAYERS = 20


def main() -> int:
    """Compare, replay, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--replays", type=int, default=10_000)
    parser.add_argument("--model", type=Path, help="an ONNX file [a chain of 20 equal convolutions]")
    parser.add_argument("--log", type=Path, default=Path("runs/compare_aa.jsonl"))
    parser.add_argument("--name", default="compare_aa", help="of the record")
    asked = parser.parse_args()
    asked.log.parent.mkdir(parents=True, exist_ok=True)
    model = asked.model or chain(LAYERS, asked.log.with_name("aa_chain.onnx"))

    def one(number: int) -> replay.Row:
        loaded = number % 2 == 1
        with replay.load(loaded):
            return {"loaded": loaded} | replay.compare(model, model, BOUNDS, asked.seconds, number)

    rows = replay.resume(asked.log, asked.count, one)
    replays = {
        condition: replay.replay(some, BOUNDS, asked.seconds, asked.replays)
        for condition, loaded in (("quiet", False), ("neighbour", True))
        if (some := [row for row in rows if row["loaded"] == loaded])
    }
    table = [_line(rows, replays, bound, loaded) for bound in ("2", "5") for loaded in (False, True)]
    passed = _passed(rows, replays)
    what = (
        f"A file against itself: {len(rows)} live comparisons of at most {asked.seconds:g} s, and "
        f"{asked.replays} replays each"
    )
    record = {
        "what": what, "rows": [row for row in table if row["live"]], "passed": passed, "model": model.name,
        "replays": replays, "comparisons": rows,
    }  # fmt: skip
    path = replay.write(asked.name, record)
    print(f"{path}: {'pass' if passed else 'FAIL'}")
    for row in record["rows"]:
        print(row)
    return 0 if passed else 1


def _line(rows: list[replay.Row], replays: dict[str, Any], bound: str, loaded: bool) -> dict[str, Any]:
    some = [row for row in rows if row["loaded"] == loaded]
    condition = "neighbour" if loaded else "quiet"
    shares = replays.get(condition, {}).get(bound, {})
    counts = replay.counted(some, bound)
    return {
        "bound, %": float(bound), "other core": "busy in bursts" if loaded else "as it was", "live": len(some),
        **counts, "false regressions in replays, %": round(100 * shares.get("regression", 0), 3),
        "passed in replays, %": round(100 * shares.get("pass", 0), 2),
        "median turns": shares.get("turns_median"),
    }  # fmt: skip


def _passed(rows: list[replay.Row], replays: dict[str, Any]) -> bool:
    false = max(replay.counted(rows, bound)["regression"] for bound in ("2", "5"))
    shares = [found[bound]["regression"] for found in replays.values() for bound in ("2", "5")]
    greens = replay.counted(rows, "5")["pass"]
    return false <= 0.01 * len(rows) and max(shares) <= 0.01 and greens >= 0.9 * len(rows)


if __name__ == "__main__":
    sys.exit(main())
