"""Draw benchmarks/README.md from the records in benchmarks/results: no figure in it is typed by hand.

    python benchmarks/table.py           # writes README.md
    python benchmarks/table.py --check   # exit 1 when it is out of step

A record is one JSON file with "what" (a sentence), "rows" (a list of flat objects, one a line of the table) or "cases"
(such objects by name), and "host" (where it was measured).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TARGET = HERE / "README.md"
INTRODUCTION = """# Benchmarks

Made by `python benchmarks/table.py` from the records in `results/`; nothing here is typed by hand. Each script says in its
first lines how to run it; those that need real data find it through `TOOLCHAIN_DATA`. How figures are measured:
[docs/measuring.md](../docs/measuring.md). What is not in a table was not measured{without}.
"""


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    paths = sorted((HERE / "results").glob("*.json"))
    without = "" if any("cuda" in path.name for path in paths) else ";\nno CUDA figure exists yet"
    sections = (section(json.loads(path.read_text())) for path in paths)
    text = INTRODUCTION.format(without=without) + "".join(sections)
    if asked.check:
        return 0 if TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


def section(record: dict[str, Any]) -> str:
    """One record as a heading, a table and the machine."""
    rows = (
        record["rows"]
        if "rows" in record
        else [*(cases(record["cases"]) if "cases" in record else files(record))]
    )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(shown(row.get(name)) for name in columns) for row in rows]
    table = "\n".join(f"| {line} |" for line in lines)
    host = record["host"]
    what = record.get("what") or record["protocol"]["task"]
    where = f"{host['cpu']}, {host['isa']}, {host['cores']} cores, load {host['load'][0]:.1f}"
    return f"\n## {what}\n\n{table}\n\nMeasured on {where}. {record.get('note', '')}".rstrip() + "\n"


def files(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a record of ONNX files: accuracy of each, and the interleaved speed of those that were timed."""
    for name, scored in record["accuracy"].items():
        timed = record["speed"].get(name, {}).get("interleaved", {})
        yield {"file": name, **scored, "bytes": record["bytes"].get(name), **timed}


def cases(named: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of a record that keeps its cases by name: figures and intervals, without raw samples."""
    for name, fields in named.items():
        yield {"case": name} | {
            k: v for k, v in fields.items() if not isinstance(v, dict | list) or k.endswith("ci95")
        }


def shown(value: Any) -> str:
    """A cell: three significant digits, intervals in brackets."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return "" if value is None else str(value).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
