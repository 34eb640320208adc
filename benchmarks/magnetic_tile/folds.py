"""Five grouped, stratified folds over all 1,344 magnetic tile pictures: what both sides are scored on."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

FOLDS = 5
SEED = 20261123


@dataclass(frozen=True)
class Tiles:
    """All pictures: paths, class indices [n], tile groups [n] (a tile is photographed up to six times)."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    classes: tuple[str, ...]


def folder() -> Path:
    """Where the pictures lie; stops with a sentence when they are not there."""
    root = Path(os.environ.get("TOOLCHAIN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (root / "factory_magnetic_tile").is_dir():
        raise SystemExit(f"{root}: TOOLCHAIN_DATA not found; export TOOLCHAIN_DATA=/path/to/data")
    return root


def tiles() -> Tiles:
    """Read every picture's class and group from split.csv, in its order."""
    base = folder() / "factory_magnetic_tile"
    with (base / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    paths = tuple(base / row["split"] / row["class"] / row["file"] for row in rows)
    kinds = [row["class"] for row in rows]
    classes = tuple(sorted(set(kinds)))
    labels = np.array([classes.index(kind) for kind in kinds])
    return Tiles(paths, labels, tuple(row["tile_group"] for row in rows), classes)


def folds(found: Tiles) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(train, held-out) index arrays; no group is in both."""
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    return list(splitter.split(np.zeros(len(found.labels)), found.labels, found.groups))
