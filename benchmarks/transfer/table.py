"""Draw the record of the transfer table from the cells that benchmarks.transfer.run has filled.

python -m benchmarks.transfer.table          # benchmarks/results/transfer.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t

from benchmarks.transfer.run import CELLS
from benchmarks.transfer.starts import names
from benchmarks.transfer.tasks import FOLDS, TASKS

RECORD = Path(__file__).parents[1] / "results" / "transfer.json"
PROTOCOL = {
    "optimizer": "tune: AdamW on all parameters, warm-up a tenth, cosine, label smoothing 0.1, small rotation, scale and "
    "shift, mirrored pictures but for digits; probe: logistic regression on standardised frozen features",
    "chosen": "on val with draw 0, for each start and number of pictures, beyond the grid's edge until the best lies "
    "inside (or at 1e-5, where one probe of imagenet ended); ties by val loss",
    "tasks": {name: kind.told for name, kind in TASKS.items()},
    "unit": "percent (top-1; balanced accuracy for blood cells and magnetic tile), mean and standard deviation over draws "
    "of pictures (folds where the task says so), classifier and order; over_random: paired by draw, t interval "
    "over draws (over folds of the "
    "magnetic tile, where draws of one fold are averaged first); test pictures are not drawn again in it",
}


def record(folder: Path) -> dict[str, Any]:
    """The cells that have scores, as rows, each bundled start with its lead over its random twin."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = {_place(cell): cell for cell in cells if cell["test"]}
    if not found:
        raise SystemExit(f"{folder}: no cell with scores, run benchmarks.transfer.run first")
    rows = [_row(found[place], found.get(_twin(place))) for place in sorted(found, key=_order)]
    return {
        "what": "transfer of the bundled backbones: percent right by pictures a class",
        "protocol": PROTOCOL,
        "rows": rows,
        "weights_sha256": {cell["start"]: cell["weights_sha256"] for cell in found.values()},
        "host": max(found.values(), key=lambda cell: cell["seconds"])["host"],
        "note": "imagenet: MobileNetV2 1.0 of TOOLCHAIN_DATA/weights, as it is, at the same picture sizes.",
    }


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, list[float] | None]:
    """Mean of ours minus theirs and its 95 % t interval, None for fewer than two pairs."""
    lead = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(lead)
    if len(lead) < 2:
        return round(mean, 2), None
    half = float(t.ppf(0.975, len(lead) - 1)) * statistics.stdev(lead) / math.sqrt(len(lead))
    return round(mean, 2), [round(mean - half, 2), round(mean + half, 2)]


def _row(cell: dict[str, Any], twin: dict[str, Any] | None) -> dict[str, Any]:
    scores = cell["test"]
    values = units(cell["task"], scores)
    row = {name: cell[name] for name in ("task", "per_class", "way", "start")}
    row |= {
        "rate": cell["rate"],
        "mean": round(statistics.mean(values), 2),
        "sd": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "draws": [round(value, 2) for value in scores.values()],
    }
    both = [draw for draw in scores if twin and draw in twin["test"]]
    if twin and both:
        ours, theirs = ({draw: side[draw] for draw in both} for side in (scores, twin["test"]))
        row["over_random"], row["over_random_ci95"] = paired(
            units(cell["task"], ours), units(cell["task"], theirs)
        )
    return row


def units(task: str, scores: Mapping[str, float]) -> list[float]:
    """What is drawn independently: every draw, but of the magnetic tile the mean of a fold's draws, which share pictures."""
    if task != "magnetic_tile":
        return list(scores.values())
    folds: dict[int, list[float]] = {}
    for draw, value in scores.items():
        folds.setdefault(int(draw) % FOLDS, []).append(value)
    return [statistics.mean(values) for values in folds.values()]


Place = tuple[str, str, str, str]


def _place(cell: dict[str, Any]) -> Place:
    return cell["task"], cell["per_class"], cell["way"], cell["start"]


def _twin(place: Place) -> Place:
    return *place[:3], f"{place[3]}-random"


def _order(place: Place) -> tuple[int, str, float, int]:
    task, per_class, way, start = place
    count = math.inf if per_class == "all" else float(per_class)
    return list(TASKS).index(task), way, count, names().index(start)


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--out", type=Path, default=RECORD)
    arguments = parser.parse_args()
    arguments.out.write_text(json.dumps(record(arguments.cells), indent=1) + "\n")


if __name__ == "__main__":
    main()
