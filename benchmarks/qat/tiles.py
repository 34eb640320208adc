"""Magnetic tiles for `bench-qat`: small margins, so that rounding costs answers; five folds in the place of seeds.

The float network, the narrowing (to half of the channels) and the settings of both quantizations are those of
`pruned-int8` in recipes/surface-inspection.yaml. What was held out of a fold's training scores its files: 1,344 pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.magnetic_tile import folds, trip
from toolchain.data.dataset import Data
from toolchain.pipeline import Pipeline
from toolchain.recipe import Recipe, Variant
from toolchain.steps import AnyStep, Qat

TASK = "magnetic-tile"
FOLDS = tuple(range(folds.FOLDS))
SHIPPED = "pruned-int8"
REWRITING = ("join", "equalize", "grey_stem")  # its steps that change no answer
GENTLE = {"lr": 1e-5, "epochs": 3}  # for the whole network: by val of one fold, where 1e-4 lost answers
# form: {side: its file}
FORMS: Mapping[str, Mapping[str, str]] = {
    "8 bits": {"float": "fp32", "ptq": "whole-ptq", "qat": "whole-qat"},
    "half of the channels, 8 bits": {"float": "fp32", "ptq": "narrowed-ptq", "qat": "narrowed-qat"},
}


def opened(fold: int, scratch: Path) -> tuple[Pipeline, Data]:
    """The files of both forms over a fold; scratch: trip.py's, which saves the training of the float networks."""
    return trip.opened(folds.tiles(), fold, scratch, variants)


def variants(recipe: Recipe) -> dict[str, Variant]:
    """The float network, and the whole and the narrowed one, each by `quantize` and by `qat` with the same quantization."""
    *before, last = recipe.variants[SHIPPED].steps
    if not isinstance(last, Qat):
        raise SystemExit(f"{recipe.name}: {SHIPPED} ends with {last.step}, not with qat")
    rewriting = [step for step in before if step.step in REWRITING]
    made = {"fp32": recipe.variants["fp32"]}
    for name, steps, qat in (
        ("whole", rewriting, last.model_copy(update=GENTLE)),
        ("narrowed", before, last),
    ):
        made[f"{name}-ptq"] = _of([*steps, last.quantize])
        made[f"{name}-qat"] = _of([*steps, qat])
    return made


def _of(steps: Sequence[AnyStep]) -> Variant:
    return Variant.model_validate({"from": "fp32", "steps": tuple(steps)})
