"""Score both sides of the magnetic tile comparison: balanced accuracy over all out-of-fold answers.

    python -m benchmarks.magnetic_tile.score      # reads results/magnetic_tile/*.json, writes results/magnetic_tile.json

Intervals draw tiles, not pictures (a tile is photographed up to six times). Rows whose five folds are not all done
are named as not measured. Pass: ours is at least 10 points of balanced accuracy above the bare script.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.magnetic_tile.bare import OUT
from benchmarks.magnetic_tile.folds import Tiles, folds, tiles
from benchmarks.magnetic_tile.ours import ROWS, slug
from toolchain import stats
from toolchain.runtime import host

RESULT = OUT.with_suffix(".json")
BOUND = 10.0
Answers = NDArray[np.float64]


def main() -> int:
    """Write the record; exit 1 when the bound is missed, 2 when a side is not whole."""
    found = tiles()
    sides = {row: answers(found, slug(row)) for row in ("bare", *ROWS)}
    whole = {row: given for row, given in sides.items() if given is not None}
    missing = [row for row in sides if row not in whole]
    record: dict[str, Any] = {
        "what": "magnetic tiles, six classes: balanced accuracy over five grouped folds, out of fold, 1,344 pictures",
        "rows": [scored(found, whole, row) for row in whole],
        "not_measured": missing,
        "note": f"Not measured yet: {', '.join(missing)}." if missing else "",
        "host": host.facts(),
    }
    both = {"bare", "ours"} <= whole.keys()
    if both:
        gain = difference(found, whole["ours"], whole["bare"])
        record |= {"gain": gain.value, "gain_ci95": gain.ci95, "bound": BOUND, "passed": gain.value >= BOUND}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k != "host"}, indent=1))
    return 2 if not both else 0 if record["passed"] else 1


def answers(found: Tiles, name: str) -> Answers | None:
    """Probabilities [n, C] of all pictures, each from the fold that held it out; None when a fold is missing."""
    given = np.full((len(found.labels), len(found.classes)), np.nan)
    for fold, (_, held) in enumerate(folds(found)):
        path = OUT / f"{name}_fold{fold}.json"
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        if kept["held"] != held.tolist():
            raise SystemExit(f"{path}: made with other folds; delete it and train that fold again")
        given[held] = kept["probabilities"]
    return given


def scored(found: Tiles, whole: dict[str, Answers], row: str) -> dict[str, Any]:
    """One row of the table, percent and points."""
    own = whole[row]
    balanced = stats.accuracy_interval(own, found.labels, found.groups, "balanced")
    line: dict[str, Any] = {
        "row": row, "balanced": round(100 * balanced.value, 1),
        "balanced_ci95": [round(100 * end, 1) for end in balanced.ci95],
        "top1": round(100 * stats.top1(own, found.labels), 1),
        "recalls": dict(zip(found.classes, (100 * stats.recalls(own, found.labels)).round(0).tolist(), strict=True)),
    }  # fmt: skip
    for other in ("bare", "ours"):
        if other in whole and other != row:
            gain = difference(found, own, whole[other])
            line |= {
                f"over_{other}": round(gain.value, 1),
                f"over_{other}_ci95": [round(x, 1) for x in gain.ci95],
            }
    return line


def difference(found: Tiles, own: Answers, other: Answers) -> stats.Interval:
    """Points of balanced accuracy that `own` has over `other`, paired, drawn by tile."""
    return stats.accuracy_difference(own, other, found.labels, found.groups, "balanced")


if __name__ == "__main__":
    sys.exit(main())
