"""Simulated answers of two models to 10,000 pictures: is a loss of 0.5 points that is real found, and none invented?

    python benchmarks/compare/accuracy.py [--count 400]

Each scenario says what share of pictures only the base answers rightly, and what share only the candidate. Each
simulation is one line of runs/compare_accuracy.jsonl; started again, it goes on after the last. Writes
benchmarks/results/compare_accuracy.ISA.json. Pass: the real loss is found in at least 95 %,
a loss that is not there is called real in at most 5 % (2.5 standard errors more allowed), and the intervals hold the
truth in at least 93 %; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import replay

from toolchain.compare import accuracy
from toolchain.compare.answers import Paired
from toolchain.compare.gates import Gates

PICTURES, CLASSES, BASE = 10_000, 10, 0.93
# Shares of pictures: lost by the candidate, won by it. The true loss is the difference.
SCENARIOS = {
    "0.5 points, few answers change": (0.0100, 0.0050),
    "0.5 points, many answers change": (0.0425, 0.0375),
    "no loss, few answers change": (0.0075, 0.0075),
    "no loss, many answers change": (0.0400, 0.0400),
}
REAL, NONE = (
    ("0.5 points, few answers change",),
    ("no loss, few answers change", "no loss, many answers change"),
)


def simulated(lost: float, won: float, seed: int) -> Paired:
    """Answers with these shares of flips, drawn picture by picture."""
    rng = np.random.default_rng([20150715, seed])
    labels = rng.integers(0, CLASSES, PICTURES)
    throw = rng.random(PICTURES)
    only_base, only_candidate = throw < lost, (throw >= lost) & (throw < lost + won)
    both = (throw >= lost + won) & (throw < BASE + won)
    wrong = (labels + rng.integers(1, CLASSES, PICTURES)) % CLASSES
    certain = 0.9 * np.eye(CLASSES) + 0.1 / CLASSES
    answers = [certain[np.where(both | right, labels, wrong)] for right in (only_base, only_candidate)]
    names = tuple(f"class {k}" for k in range(CLASSES))
    return Paired(answers[0], answers[1], labels, names, "simulated")


def one(number: int) -> replay.Row:
    """One simulation of every scenario in turn."""
    name = list(SCENARIOS)[number % len(SCENARIOS)]
    gates = Gates(accuracy=0.0)
    found = accuracy.score(simulated(*SCENARIOS[name], number), gates)
    check = accuracy.checks(found, gates)[0]
    return {
        "scenario": name, "loss": round(found.loss, 4), "ci95": found.ci95, "p_value": found.p_value,
        "real": found.real, "verdict": check.verdict,
    }  # fmt: skip


def row(name: str, rows: list[replay.Row]) -> dict[str, Any]:
    """A line of the table."""
    lost, won = SCENARIOS[name]
    true = 100 * (lost - won)
    some = [r for r in rows if r["scenario"] == name]
    shown = [r for r in some if 0.45 <= r["loss"] <= 0.55]
    return {
        "scenario": name, "true loss, points": round(true, 2), "answers that change, %": round(100 * (lost + won), 2),
        "simulations": len(some), "called real, %": round(100 * np.mean([r["real"] for r in some]), 2),
        "interval holds the truth, %": round(100 * np.mean([r["ci95"][0] <= true <= r["ci95"][1] for r in some]), 2),
        "of those that show 0.45 to 0.55 points, called real, %":
            round(100 * np.mean([r["real"] for r in shown]), 1) if shown else None,
    }  # fmt: skip


def main() -> int:
    """Simulate, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=400, help="simulations of each scenario")
    parser.add_argument("--log", type=Path, default=Path("runs/compare_accuracy.jsonl"))
    asked = parser.parse_args()
    rows = replay.resume(asked.log, asked.count * len(SCENARIOS), one)
    table = {name: row(name, rows) for name in SCENARIOS}
    slack = 250 * math.sqrt(0.05 * 0.95 / asked.count)
    passed = all(
        (
            all(table[name]["called real, %"] >= 95 for name in REAL),
            all(table[name]["called real, %"] <= 5 + slack for name in NONE),
            all(line["interval holds the truth, %"] >= 95 - slack for line in table.values()),
        )
    )
    what = f"Losses of accuracy on {PICTURES:,} pictures, simulated: McNemar's test and the paired bootstrap"
    path = replay.write("compare_accuracy", {"what": what, "rows": list(table.values()), "passed": passed})
    print(f"{path}: {'pass' if passed else 'FAIL'}")
    print(json.dumps(list(table.values()), indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
