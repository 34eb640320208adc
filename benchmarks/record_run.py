"""Keep the figures of a finished run as a record: one row a file.

python benchmarks/record_run.py runs/blood-cells        # writes benchmarks/results/run_blood-cells.ISA.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from toolchain.report import RunReport, parse
from toolchain.report.summary import main_accuracy, main_latency, main_speedup


def main() -> int:
    """Read report.json, write the record."""
    report = parse((Path(sys.argv[1]) / "report.json").read_text())
    record = {
        "what": f"toolchain run {report.run.name}: {report.run.description}",
        "rows": [row(report, name) for name in [variant.name for variant in report.variants]],
        "chosen": report.chosen,
        "seconds": report.run.seconds,
        "steps": [json.loads(step.model_dump_json()) for step in report.steps],
        "host": dict(report.host),
    }
    target = Path(__file__).resolve().parent / "results" / f"run_{report.run.name}.{report.host['isa']}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def row(report: RunReport, name: str) -> dict[str, Any]:
    """One file: accuracy on test and what it lost (points), latency and speed-up of the plain file, size."""
    variant = report.variant(name)
    if variant is None:
        raise KeyError(name)
    test, val = main_accuracy(variant), main_accuracy(variant, "val")
    latency, speedup = main_latency(variant), main_speedup(report, name)
    drop, same = variant.drop.get("test"), variant.agreement.get("test")
    return {
        "file": name,
        "status": variant.status,
        "test top-1, %": round(100 * test.top1, 2) if test else None,
        "test balanced, %": round(100 * test.balanced, 2) if test else None,
        "val top-1, %": round(100 * val.top1, 2) if val else None,
        "lost, points": round(drop.points, 2) if drop else None,
        "lost ci95": [round(x, 2) for x in drop.ci95] if drop else None,
        "agrees, %": round(100 * same.share, 2) if same else None,
        "p50, ms": round(latency.p50_ns / 1e6, 3) if latency and latency.p50_ns else None,
        "faster": round(speedup.ratio, 2) if speedup else None,
        "faster ci95": [round(x, 2) for x in speedup.ci95] if speedup else None,
        "bytes": variant.bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
