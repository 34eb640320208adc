"""Put the transfer tables of the record into the backbones' cards, docs/cards/NAME.md, between their marks.

python -m benchmarks.transfer.cards            # after benchmarks.transfer.table
python -m benchmarks.transfer.cards --check    # exit 1 when a card is out of step
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "results" / "transfer.json"
CARDS = Path(__file__).parents[2] / "docs" / "cards"
NAMES = ("nano", "small")
BEGIN, END = "<!-- drawn by benchmarks.transfer.cards -->\n", "<!-- end of what is drawn -->\n"
_TASKS = {
    "cifar10": "CIFAR-10, 32 pixels",
    "digits": "digits, 32 pixels",
    "blood_cells": "blood cells, 64 pixels",
    "magnetic_tile": "magnetic tiles, 64 pixels",
}
_WAYS = {"tune": "Fine-tuned", "probe": "Linear probe"}
Row = Mapping[str, Any]


def drawn(name: str, record: Mapping[str, Any]) -> str:
    """The tables of one backbone, a way of using its weights each."""
    return "\n".join(_table(way, name, record["rows"]) for way in _WAYS)


def _table(way: str, name: str, rows: Sequence[Row]) -> str:
    head = f"| {_WAYS[way]} | pictures a class | draws | random weights | {name} | lead | MobileNetV2, ImageNet |"
    return "\n".join([head, "|---" * 7 + "|", *_lines(way, name, rows)]) + "\n"


def _lines(way: str, name: str, rows: Sequence[Row]) -> Iterator[str]:
    found = {(row["task"], row["per_class"], row["start"]): row for row in rows if row["way"] == way}
    for (task, count, start), row in found.items():
        if start == name:
            random, reference = (found.get((task, count, s)) for s in (f"{name}-random", "imagenet"))
            cells = (
                _TASKS[task],
                count,
                len(row["draws"]),
                _mean(random),
                _mean(row),
                _lead(row),
                _mean(reference),
            )
            yield f"| {' | '.join(map(str, cells))} |"


def _mean(row: Row | None) -> str:
    """Mean and standard deviation over the draws."""
    if row is None:
        return "not measured"
    return f"{row['mean']:.1f}" + (f" ± {row['sd']:.1f}" if row["sd"] is not None else "")


def _lead(row: Row) -> str:
    if "over_random" not in row:
        return "not measured"
    ends = row["over_random_ci95"]
    words = f"{row['over_random']:+.1f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")
    return words.replace("-", "−")


def replaced(card: str, tables: str) -> str:
    """A card with these tables between its marks. Raises ValueError without marks."""
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a card needs the lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> int:
    """Write the cards, or compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    record, stale = json.loads(RECORD.read_text()), False
    for name in NAMES:
        path = CARDS / f"{name}.md"
        text = replaced(path.read_text(), drawn(name, record))
        stale |= text != path.read_text()
        if not asked.check:
            path.write_text(text)
    return int(asked.check and stale)


if __name__ == "__main__":
    raise SystemExit(main())
