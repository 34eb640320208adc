"""What a bench record says once intervals are drawn, for people and for the history.

The split: the runtime measures, on any device and without scipy, and keeps every sample; intervals are drawn
here, on the machine where the record comes home, from the same samples and by one implementation.
"""

from __future__ import annotations

from dataclasses import replace

from toolchain import stats
from toolchain.runtime.bench_record import PERCENTILES, BenchRecord, Case, Percentile


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
