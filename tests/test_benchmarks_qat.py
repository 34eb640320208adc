"""What it takes `bench-qat` to pass."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.qat import run


def row(form: str, low: float, high: float, apart: float = 0.1) -> dict[str, Any]:
    return {"form": form, "gained_ci95": [low, high], "simulated and deployed apart, points": apart}


@pytest.mark.parametrize(
    ("rows", "passed"),
    [
        ([row("8 bits", 1, 3), row("half of the channels, 8 bits", 0.1, 2)], True),
        ([row("8 bits", 1, 3), row("half of the channels, 8 bits", -0.1, 2)], False),
        ([row("8 bits", -1, 3), row("half of the channels, 8 bits", 0.1, 2)], False),
        ([row("8 bits", 1, 3), row("half of the channels, 8 bits", 0.1, 2, apart=0.4)], False),
        (
            [row("8 bits", 1, 3), row("half of the channels, 8 bits", 0.1, 2), row("8 bits", -3, -0.1)],
            False,
        ),
    ],
)
def test_it_passes_where_whole_and_pruned_networks_gain_and_none_loses(
    rows: list[dict[str, Any]], passed: bool
) -> None:
    assert run.passes(rows) is passed
