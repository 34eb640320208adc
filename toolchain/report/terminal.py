"""The end of a run in a terminal: the outcome, and one row a file."""

from __future__ import annotations

from toolchain.report import text
from toolchain.report.model import RunReport, Variant
from toolchain.report.summary import (
    STATUS_WORDS,
    cautions,
    drop_words,
    failed_gates,
    headline,
    main_accuracy,
    main_latency,
    main_speedup,
)

_COLUMNS = ("file", "status", "test top-1", "lost, points", "median", "faster", "size")


def render_summary(report: RunReport) -> str:
    """Headline, table of files, failed gates and cautions, as plain lines."""
    rows = [_COLUMNS, *(_row(report, variant) for variant in report.variants)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_COLUMNS))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines = [headline(report), "", *table]
    for variant in report.variants:
        for gate in failed_gates(report, variant.name):
            bound = f"{'at most' if gate.at_most else 'at least'} {text.measured(gate.bound, gate.unit)}"
            lines.append(
                f"  {variant.name}: {gate.name} is {text.measured(gate.value, gate.unit)}, wanted {bound}"
            )
    return "\n".join([*lines, *(f"  note: {line}" for line in cautions(report))])


def _row(report: RunReport, variant: Variant) -> tuple[str, ...]:
    scored, latency, speedup = (
        main_accuracy(variant),
        main_latency(variant),
        main_speedup(report, variant.name),
    )
    return (
        variant.name,
        STATUS_WORDS[variant.status],
        text.percent(scored.top1 if scored else None),
        drop_words(variant, "test") or text.NOTHING,
        text.duration(latency.p50_ns if latency else None),
        text.times(speedup.ratio if speedup else None),
        text.size(variant.bytes),
    )
