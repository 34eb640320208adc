"""`gates.yaml`: how much worse a candidate may be. Every bound has a default; null means: show it, judge it not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolchain.errors import RecipeError
from toolchain.recipe_problems import problems
from toolchain.recipe_text import expand, parse, set_value
from toolchain.record import JSON

Worse = Annotated[float, Field(ge=0)]
Points = Annotated[float, Field(ge=0, le=100)]


class Gates(BaseModel):
    """A regression is what lies beyond a bound for certain, a pass what lies inside it for certain.

    latency, cold_start, memory, size: percent that the candidate may be above the base (a call, process start
    to first answer, peak memory of a fresh process, bytes of the file). typical: likewise, of a typical call, which is
    a regression already when it is above `latency` for certain.
    accuracy: points of `metric` that it may lose on the same pictures. class_accuracy: points of recall that any
    class may lose, one figure for all or one a class. agreement: percent of pictures on which both must give
    the same answer. calibration: points by which the expected calibration error may grow.
    difference: largest absolute difference between the outputs for the same input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    latency: Worse | None = 5.0
    typical: Worse | None = 15.0
    cold_start: Worse | None = 50.0
    memory: Worse | None = 10.0
    size: Worse | None = 10.0
    metric: Literal["top1", "balanced"] = "top1"
    accuracy: Points | None = 1.0
    class_accuracy: Points | dict[str, Points] | None = None
    agreement: Points | None = None
    calibration: Points | None = None
    difference: Worse | None = None

    @property
    def typical_bound(self) -> float | None:
        """`typical`, unless latency is not judged at all and nobody asked for this one."""
        return self.typical if self.latency is not None or "typical" in self.model_fields_set else None


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Gates:
    """The bounds of a file, or the defaults; `overrides` are NAME=VALUE, e.g. "latency=2".

    Raises RecipeError that names every problem with its place in the file.
    """
    name = "gates" if path is None else path.name
    raw: dict[str, JSON] = {} if path is None else expand(_read(path))
    for override in overrides:
        set_value(raw, override, "latency=2")
    try:
        return Gates.model_validate(raw)
    except ValidationError as error:
        found = problems(error, Gates)
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise RecipeError("\n  ".join([f"{name}: {count}", *found])) from None


def _read(path: Path) -> dict[str, JSON]:
    try:
        return parse(path, "bounds are a mapping (latency: 5, accuracy: 1, …), this is not", empty=True)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
