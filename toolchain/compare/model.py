"""What a comparison found, as one frozen object: a record of kind "compare" when it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from toolchain.record import JSON
from toolchain.report.parts import Model
from toolchain.report.text import Text

Outcome = Literal["pass", "regression", "inconclusive", "not judged"]
Unit = Literal["ratio", "points", "%", "1"]
EXIT_CODES: Mapping[str, int] = {"pass": 0, "regression": 3, "inconclusive": 4}


class Check(Model):
    """One figure of both sides, and how they compare.

    value, low, high: the candidate against the base in `unit`; "ratio": the candidate's over the base's,
    above 1 is worse. low and high are null where there is no such end (yet). bound: in the same unit.
    base, candidate: what each side has, in `each` ("ns", "bytes", "%" or "1").
    """

    name: Text
    verdict: Outcome
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: Unit = "ratio"
    bound: float | None = None
    base: float | None = None
    candidate: float | None = None
    each: Literal["ns", "bytes", "%", "1"] = "1"
    note: Text = ""


class Half(Model):
    """One side of a turn: raw nanoseconds [pairs][calls], and what its fresh process took."""

    samples_ns: tuple[tuple[int, ...], ...]
    session_ns: int
    first_answer_ns: int
    peak_bytes: int


class PairedTurn(Model):
    """Both sides of a turn."""

    base: Half
    candidate: Half


class ClassRow(Model):
    """One class: pictures, recalls in percent, points lost with their 95 % interval, answers lost and won."""

    name: Text
    n: int
    base: float
    candidate: float
    loss: float
    ci95: tuple[float, float]
    lost: int
    won: int


class Answers(Model):
    """Both sides on the same pictures. Accuracies and agreement in percent, losses in points.

    lost, won: pictures answered rightly by the base only, by the candidate only. p_value: exact McNemar
    test. real: whether it is below 0.05 and the 95 % interval of the loss excludes nought. ece: expected
    calibration errors in points, null where only labels were saved.
    """

    source: Text
    n: int
    groups: int | None = None
    metric: Literal["top1", "balanced"]
    base: float
    candidate: float
    loss: float
    ci95: tuple[float, float]
    lost: int
    won: int
    p_value: float
    real: bool
    agreement: float
    agreement_ci95: tuple[float, float]
    ece: tuple[float, float] | None = None
    classes: tuple[ClassRow, ...] = ()


class SideInfo(Model):
    """A side's file: see `bench_record.ModelFile`."""

    name: Text
    path: Text
    sha256: str
    bytes: int
    form: Literal["bundle", "onnx"]


class Comparison(Model):
    """A finished comparison. seconds: of timing; level: of the intervals from turns, together for all looks;
    method: how the latencies were set against each other; failure: what ended it before its time."""

    schema_version: int = Field(default=1, alias="schema")
    kind: Literal["compare"] = "compare"
    toolchain: str
    started: str
    host: Mapping[str, JSON]
    base: SideInfo
    candidate: SideInfo
    condition: Mapping[str, JSON]
    method: Literal["interleaved", "records"]
    seconds: float = 0.0
    calls: int = 0
    dropped: int = 0
    level: float = 0.99
    checks: tuple[Check, ...]
    answers: Answers | None = None
    turns: tuple[PairedTurn, ...] = ()
    notes: tuple[Text, ...] = ()
    failure: Text | None = None

    @property
    def verdict(self) -> Literal["pass", "regression", "inconclusive"]:
        """The worst of all checks that were judged."""
        found = {check.verdict for check in self.checks}
        if "regression" in found:
            return "regression"
        return "inconclusive" if "inconclusive" in found or self.failure else "pass"

    @property
    def exit_code(self) -> int:
        """0 pass, 3 regression, 4 inconclusive."""
        return EXIT_CODES[self.verdict]

    def record(self) -> dict[str, JSON]:
        """The comparison as plain values, with its verdict."""
        return self.model_dump(mode="json", by_alias=True) | {"verdict": self.verdict}
