"""A bench with its intervals.

The split: the runtime measures, on any device and without scipy, and keeps every sample; intervals are drawn
here, on the machine where the record comes home, from the same samples and by one implementation.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from toolchain import stats
from toolchain.runtime import bench as runtime
from toolchain.runtime.bench_record import PERCENTILES, BenchRecord, Case, Percentile


def bench(model: Path, asked: runtime.Asked, told: runtime.Told | None = None) -> BenchRecord:
    """Time an ONNX file or a bundle on this machine (`runtime.bench.bench`), with intervals."""
    return with_intervals(runtime.bench(model, asked, told))


def with_intervals(record: BenchRecord) -> BenchRecord:
    """The record with a 95 % interval at every percentile that it has: a bootstrap over whole blocks."""
    return replace(record, cases=tuple(_with_intervals(case) for case in record.cases))


def _with_intervals(case: Case) -> Case:
    found: dict[str, Percentile | None] = {}
    for name, q in PERCENTILES.items():
        given = case.percentiles.get(name)
        interval = None if given is None else stats.percentile_interval(case.blocks, q)
        if given is not None and interval is not None:
            given = Percentile(given.ns, interval.ci95)
        found[name] = given
    return replace(case, percentiles=found)
