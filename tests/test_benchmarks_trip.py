"""magnetic_tile/trip.py: a picture's answers lie in its own place, of every seed, and every bar counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.magnetic_tile import trip
from benchmarks.magnetic_tile.folds import Tiles

PICTURES = 40
SPEED = {"fp32": (1.0, 1.0), "int8": (2.0, 1.9), "pruned": (1.5, 1.4), "pruned-int8": (4.4, 4.1)}


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiles:
    """Forty pictures of two classes, two a tile, whose folds are every fifth tile."""
    (tmp_path / "factory_magnetic_tile").mkdir()
    monkeypatch.setenv("TOOLCHAIN_DATA", str(tmp_path))
    monkeypatch.setattr(trip, "OUT", tmp_path)
    tile = np.arange(PICTURES) // 2
    held = [np.flatnonzero(tile % trip.FOLDS == fold) for fold in range(trip.FOLDS)]
    monkeypatch.setattr(
        trip, "folds", lambda _: [(np.setdiff1d(np.arange(PICTURES), one), one) for one in held]
    )
    base = tmp_path / "factory_magnetic_tile"
    paths = tuple(base / f"{number}.jpg" for number in range(PICTURES))
    return Tiles(paths, np.arange(PICTURES) % 2, tuple(map(str, tile)), ("no", "yes"))


def answer(found: Tiles, seed: int, wrong: dict[str, set[int]]) -> None:
    """Every fold's answers, right but for those of `wrong`, by file."""
    for fold, (_, held) in enumerate(trip.folds(found)):
        names = [found.paths[place].name for place in held[::-1]]
        answers = {
            name: [
                np.eye(2)[found.labels[place] ^ (place in wrong.get(name, ()))].tolist()
                for place in held[::-1]
            ]
            for name in trip.FILES
        }
        trip.path(fold, seed).write_text(json.dumps({"pictures": names, "answers": answers}))


def test_answers_of_all_seeds_lie_with_their_labels(found: Tiles) -> None:
    answer(found, 0, {"int8": {3}})
    answer(found, 1, {"int8": {4, 5}})
    given = trip.whole(found, [0, 1])["int8"]
    wrong = np.flatnonzero(given.argmax(axis=1) != np.tile(found.labels, 2))
    assert wrong.tolist() == [3, PICTURES + 4, PICTURES + 5]
    record = trip.scored(found, trip.whole(found, [0, 1]), SPEED, [0, 1])
    (row,) = [row for row in record["rows"] if row["file"] == "int8"]
    assert row["top-1 lost"] == pytest.approx(100 * 3 / 80)
    assert row["top-1 lost by seed"] == [100 * 1 / 40, 100 * 2 / 40]
    assert row["agrees by seed, %"] == [97.5, 95]
    assert not record["passed"]


def test_answers_of_other_folds_are_refused(found: Tiles) -> None:
    answer(found, 0, {})
    trip.path(0, 0).write_text(trip.path(1, 0).read_text())
    with pytest.raises(SystemExit, match="other folds"):
        trip.whole(found, [0])


@pytest.mark.parametrize(
    ("wrong", "speed", "seeds", "passed"),
    [
        ({}, {}, trip.SEEDS, True),
        ({}, {}, trip.SEEDS[:1], False),
        ({}, {"pruned-int8": (4.4, 3.99)}, trip.SEEDS, False),
        ({}, {"int8": (1.9, 1.79)}, trip.SEEDS, False),
        ({"pruned-int8": {3}}, {}, trip.SEEDS, False),
        ({"pruned": {3, 7, 9}}, {}, trip.SEEDS, True),
    ],
)
def test_every_bar_counts(
    found: Tiles,
    wrong: dict[str, set[int]],
    speed: dict[str, tuple[float, float]],
    seeds: tuple[int, ...],
    passed: bool,
) -> None:
    for seed in seeds:
        answer(found, seed, wrong)
    record = trip.scored(found, trip.whole(found, seeds), SPEED | speed, seeds)
    assert record["passed"] is passed
