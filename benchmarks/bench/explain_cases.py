"""`--explain` on planted pitfalls and on healthy files: does it name the right culprit, and keep silent?

    python -m benchmarks.bench.explain_cases [--by-hand]

Each file is made, traced and explained on this machine, one thread, batch 1; timm's networks have random weights and
are quantized by onnxruntime's own `quantize_static` (--by-hand leaves them out). Writes
benchmarks/results/explain.ISA.json. Pass: every planted pitfall that exists on this ISA is named first and every healthy
file is met with silence; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bench.planted import BY_HAND, OF_THE_FIELD, Case, explained
from toolchain.runtime import host

RESULT = Path(__file__).resolve().parents[1] / "results" / f"explain.{host.isa()}.json"


def judged(name: str, case: Case) -> dict[str, Any]:
    """One row: what was planted, what was found first, and whether that is right."""
    with tempfile.TemporaryDirectory() as folder:
        found = explained(case.make(Path(folder, "net.onnx")))
    first = found.findings[0] if found.findings else None
    return {
        "file": name,
        "planted": case.kind or "nothing",
        "first finding": first.what if first else "none",
        "share, %": round(100 * first.share, 1) if first else None,
        "further findings": max(0, len(found.findings) - 1),
        "right": case.right(found),
    }


def main() -> int:
    """Judge every case, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--by-hand", action="store_true", help="leave timm's networks out")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    cases = {**BY_HAND, **({} if asked.by_hand else OF_THE_FIELD)}
    slow_signed = host.isa().startswith("x86") and "amx_int8" not in host.facts()["features"]
    rows = [judged(name, case) for name, case in cases.items() if slow_signed or not case.x86]
    for row in rows:
        print(f"{'right' if row['right'] else 'WRONG':6} {row['file']}: {row['first finding']}")
    what = "What `--explain` says first of files with a planted pitfall, and of healthy ones"
    asked.out.write_text(json.dumps({"what": what, "rows": rows, "host": host.facts()}, indent=1) + "\n")
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
