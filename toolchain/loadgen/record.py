"""The record of a LoadGen run, which lies beside LoadGen's own logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from toolchain.loadgen.settings import Load
from toolchain.loadgen.summary import Summary
from toolchain.runtime.bench_record import Condition, ModelFile

SCHEMA, KIND = 1, "loadgen"


@dataclass(frozen=True)
class Accuracy:
    """Top-1 (0..1) of the answers in LoadGen's accuracy log, with Wilson's 95 % interval; how labels were found."""

    top1: float
    ci95: tuple[float, float]
    pictures: int
    labels: str


@dataclass(frozen=True)
class LoadgenRecord:
    """settings: LoadGen's own that this test ran with; size: "mlperf" or "shortened"; logs: the files beside it.

    summary is None in accuracy mode, which LoadGen does not judge; accuracy in performance mode.
    """

    model: ModelFile
    host: Mapping[str, Any]
    started: str
    toolchain: str
    loadgen: str
    condition: Condition
    load: Load
    settings: Mapping[str, int | float]
    summary: Summary | None
    accuracy: Accuracy | None
    logs: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether LoadGen did not refuse it."""
        return self.summary is None or self.summary.verdict == "VALID"

    def as_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return {"schema": SCHEMA, "kind": KIND, "size": self.load.size, **asdict(self)}
