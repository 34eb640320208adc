"""Where the comparison keeps things: everything below build/peers, which git ignores, but the records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from toolchain.runtime import host
from toolchain.runtime.whole import write_whole

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "peers"
RESULTS = ROOT / "benchmarks" / "results"
CASES = (
    "imagenet_sample", "blood_cells", "blood_cells_seeds", "blood_cells_small", "blood_cells_small_seeds", "magnetic_tile",
    "magnetic_tile_seeds",
)  # fmt: skip
# Cases of several trainings: three seeds; five folds, so that every picture is scored by files that never saw it; or both,
# one seed after the other.
TRAININGS = {
    "blood_cells_seeds": 3,
    "blood_cells_small_seeds": 3,
    "magnetic_tile": 5,
    "magnetic_tile_seeds": 15,
}


def parts(case: str) -> tuple[str, ...]:
    """What a case is made of: a part a training, or the case itself."""
    return tuple(f"{case}_{number}" for number in range(TRAININGS[case])) if case in TRAININGS else (case,)


def task(case: str) -> str:
    """What a case is of, whatever its seeds: its recipe, metric and bars are the same."""
    return case.removesuffix("_seeds")


def case_folder(case: str, build: Path = BUILD) -> Path:
    """The inputs of a case or part: fp32.onnx, our files, calibration.npy, held_back.npy, labels.npy, case.json."""
    return build / "cases" / case


def cell_folder(case: str, name: str, build: Path = BUILD) -> Path:
    """What one setting of one rival made of a case."""
    return build / "cells" / case / name


def record_path(case: str) -> Path:
    """The committed record: int8 figures hold for one ISA only."""
    return RESULTS / f"peers_{case}.{host.isa()}.json"


def digest(path: Path) -> str:
    """sha256, hex, of a file, and of the weights beside it in OpenVINO's form (`.bin` beside `.xml`)."""
    weights = path.with_suffix(".bin")
    parts = (path, weights) if path.suffix == ".xml" and weights.exists() else (path,)
    found = hashlib.sha256()
    for part in parts:
        found.update(part.read_bytes())
    return found.hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object whole."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
