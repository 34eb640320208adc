"""`bench-qat`: both sides of magnetic tile differ in the last step only; what it takes to pass."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.qat import run, tiles
from toolchain.recipe import load
from toolchain.steps import Qat


def test_the_tiles_files_differ_only_in_how_they_are_quantized() -> None:
    made = tiles.variants(load("surface-inspection"))
    assert made.keys() == {name for names in tiles.FORMS.values() for name in names.values()}
    for name in ("whole", "narrowed"):
        *before, last = made[f"{name}-qat"].steps
        assert isinstance(last, Qat)
        assert made[f"{name}-ptq"].steps == (*before, last.quantize)
    assert {step.step for step in made["whole-ptq"].steps} == {*tiles.REWRITING, "quantize"}
    assert made["narrowed-qat"].steps == load("surface-inspection").variants[tiles.SHIPPED].steps


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
