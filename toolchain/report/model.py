"""RunReport: everything a run's report shows, as one tree of plain values. `report.json` is this tree.

Accuracies are fractions of 1; losses of accuracy are percentage points (positive: worse than the
baseline); times are nanoseconds; sizes are bytes. Nothing here computes; text.py words the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from toolchain.measure.calibration import Calibration, Threshold
from toolchain.measure.metrics import Accuracy
from toolchain.record import JSON
from toolchain.report.parts import (
    BundleInfo,
    Curve,
    DataSection,
    Model,
    NotMeasured,
    Parity,
    Picture,
    PruningSensitivity,
    RunInfo,
    Sensitivity,
    StepTime,
    Transfer,
)
from toolchain.report.text import Text

Ends = tuple[float, float]
Provider = str
Status = Literal["chosen", "passed", "failed", "slower"]


class Latency(Model):
    """Times of one file under one condition, in nanoseconds.

    A percentile is null where there were too few samples for it (p50 20, p90 100, p99 1,000).
    alternating_p50_ns: the median when every call follows another model's. samples_ns: raw samples,
    thinned evenly by rank.
    """

    file: Literal["plain", "fused"]
    threads: int
    batch: int
    input: str = Field(description="height x width of the picture given, in pixels")
    p50_ns: int | None
    p90_ns: int | None
    p99_ns: int | None
    n: int
    alternating_p50_ns: int | None = None
    samples_ns: tuple[int, ...] = ()


class Drop(Model):
    """Points of accuracy lost against the baseline on the same pictures, with the paired 95 % interval."""

    points: float
    ci95: Ends
    metric: Literal["top1", "balanced"] = "top1"
    p_value: float | None = Field(
        default=None,
        description="exact McNemar test that both err equally often; none where pictures come in groups",
    )


class Agreement(Model):
    """The share of pictures to which the baseline gives the same answer; its interval takes every picture for itself."""

    share: float
    ci95: Ends


class Variant(Model):
    """One file: where it lies, what became of it, and all that was measured on it.

    accuracy is of test, validation of val; drop and agreement are by split, on the first provider.
    parity is by what the file was held against ("torch", "plain", …).
    """

    name: Text
    path: Text
    bytes: int
    plain_path: Text | None = None
    plain_bytes: int | None = None
    params: int | None
    macs: int | None
    status: Status
    reason: Text
    made_by: tuple[Text, ...] = Field(default=(), description="the steps from the backbone to this file")
    accuracy: Mapping[Provider, Accuracy] = {}
    validation: Mapping[Provider, Accuracy] = {}
    latency: Mapping[Provider, tuple[Latency, ...]] = {}
    parity: Mapping[str, Parity] = {}
    drop: Mapping[str, Drop] = {}
    agreement: Mapping[str, Agreement] = {}
    placement: Mapping[Provider, Mapping[str, int]] = Field(
        default={}, description="nodes of the graph by the provider that ran them"
    )


class Speedup(Model):
    """median(over) / median(of): how many times faster `of` is. block_*: percentiles of the ratio by block."""

    of: Text
    over: Text
    provider: Provider
    ratio: float
    ci95: Ends
    file: Literal["plain", "fused"] = "plain"
    threads: int = 1
    batch: int = 1
    block_p10: float | None = None
    block_p90: float | None = None
    alternating: float | None = Field(default=None, description="the ratio when calls alternate")


class Gate(Model):
    """A promise and what was measured on val; value and bound are in `unit` ("1": none)."""

    name: Text
    bound: float
    value: float
    passed: bool = Field(alias="pass")
    variant: Text
    unit: str = "1"
    at_most: bool = Field(default=True, description="the value may be at most (else: at least) the bound")
    split: str = "val"
    note: Text = ""


class RunReport(Model):
    """The whole report of one run."""

    schema_version: Literal[1] = 1
    run: RunInfo
    variants: tuple[Variant, ...]
    speedups: tuple[Speedup, ...] = ()
    chosen: Text | None
    gates: tuple[Gate, ...] = ()
    data: DataSection
    host: Mapping[str, JSON]
    bundle: BundleInfo | None = None
    curves: tuple[Curve, ...] = ()
    calibration: tuple[Calibration, ...] = Field(default=(), description="of the chosen file, by split")
    thresholds: Mapping[Text, Threshold] = {}
    mistakes: tuple[Picture, ...] = Field(default=(), description="surest wrong answers of the chosen file")
    sensitivity: tuple[Sensitivity, ...] = Field(
        default=(), description="of files whose parts could fall back"
    )
    pruning: tuple[PruningSensitivity, ...] = Field(
        default=(), description="of prunings that were asked to probe"
    )
    noticed: tuple[Text, ...] = Field(
        default=(), description="what steps found out about their own worth, in sentences"
    )
    transfer: Transfer | None = None
    not_measured: tuple[NotMeasured, ...] = ()
    steps: tuple[StepTime, ...] = ()
    reproduce: tuple[Annotated[Text, Field(min_length=1)], ...] = Field(
        default=(), description="commands, one a line"
    )

    def variant(self, name: str | None) -> Variant | None:
        """The variant of that name, if there is one."""
        return next((variant for variant in self.variants if variant.name == name), None)

    @property
    def baseline(self) -> Variant | None:
        """What the others are compared with."""
        return self.variant(self.run.baseline)
