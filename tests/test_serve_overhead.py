"""The verdict on what the server adds: kept, missed, or undecided where the interval reaches across the bar."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.serve import served
from benchmarks.serve.overhead import PAIRS, rows


@pytest.mark.parametrize(
    ("added", "cpu", "verdict"),
    [
        ([0.5] * 20, 0.5, "kept"),
        ([0.9] * 20, 0.5, "missed"),
        ([0.5, 0.9] * 10, 0.5, "undecided"),
        ([0.5] * 20, 0.9, "missed"),
    ],
)
def test_a_bar_is_missed_only_for_certain(added: list[float], cpu: float, verdict: str) -> None:
    sides = {side for bare, ours, _ in PAIRS.values() for side in (bare, ours)}
    taken = {side: [1.0] * 20 for side in sides}
    taken["server"] = list(1.0 + np.array(added))
    found = rows(taken, dict.fromkeys(sides, 0.0) | {"server": cpu})
    assert {row["requests"]: row["verdict"] for row in found} == {"arrays": verdict, "JPEG files": "kept"}


def test_an_undecided_bar_has_an_exit_code_of_its_own() -> None:
    assert served.exit_code(["kept"]) == 0
    assert served.exit_code(["kept", "undecided"]) == 4
    assert served.exit_code(["undecided", "missed"]) == 1
