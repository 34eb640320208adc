"""Rows of the report's tables, in words: variants, classes, mistakes, what pretraining brings."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from toolchain.measure.metrics import Accuracy
from toolchain.report import summary, text
from toolchain.report.model import Drop, RunReport, Variant
from toolchain.report.parts import Picture, Spread, TransferRow

SHOWN_CLASSES = 60
PICTURE_LETTERS = 900_000  # of base64: the page stays below 1.5 MB


@dataclass(frozen=True)
class Row:
    """A variant's row in the table of variants; every cell is words."""

    variant: Variant
    status: str
    accuracy: str
    accuracy_range: str
    loss_val: str
    loss_val_range: str
    loss_test: str
    loss_test_range: str
    latency: str
    speedup: str
    speedup_range: str


class Cell(NamedTuple):
    """Recall of one class by one variant."""

    share: float | None
    range: str


class ClassRow(NamedTuple):
    """Recall of one class by the variants shown."""

    name: str
    n: int
    cells: list[Cell]


class Shot(NamedTuple):
    """A mistake in the gallery; `small` pictures are enlarged without blur."""

    name: str
    label: str
    predicted: str
    probability: float
    png: str | None
    small: bool


class Gain(NamedTuple):
    """What pretraining brings at so many pictures a class."""

    per_class: int
    pretrained: Spread
    random: Spread
    pretrained_range: str
    random_range: str
    gain: str
    verdict: str
    seeds: int


def variant_row(report: RunReport, variant: Variant) -> Row:
    """A variant in words: latency and speed-up under the condition that choice goes by."""
    accuracy = summary.main_accuracy(variant)
    first = next(iter(report.baseline.latency), None) if report.baseline else None
    latency, speedup = summary.main_latency(variant, first), summary.main_speedup(report, variant.name)
    share, ends = summary.metric(report, accuracy) if accuracy else (None, None)
    val, test = _loss(variant.drop.get("val")), _loss(variant.drop.get("test"))
    return Row(
        variant=variant,
        status=summary.STATUS_WORDS[variant.status],
        accuracy=text.percent(share),
        accuracy_range=text.percent_range(ends),
        loss_val=val[0],
        loss_val_range=val[1],
        loss_test=test[0],
        loss_test_range=test[1],
        latency=text.duration(latency.p50_ns if latency else None),
        speedup=text.times(speedup.ratio) if speedup else "",
        speedup_range=f"{speedup.ci95[0]:.2f}{text.DASH}{speedup.ci95[1]:.2f}" if speedup else "",
    )


def _loss(drop: Drop | None) -> tuple[str, str]:
    return (text.points(drop.points), text.points_range(drop.ci95)) if drop else ("", "")


def compared(report: RunReport) -> list[Variant]:
    """The variants shown class by class: at most six, the baseline and the chosen one among them."""
    scored = [v for v in report.variants if v.accuracy]
    first = [v for v in scored if v.name in (report.run.baseline, report.chosen)]
    kept = {v.name for v in [*first, *(v for v in scored if v not in first)][:6]}
    return [v for v in scored if v.name in kept]


def class_rows(report: RunReport) -> list[ClassRow]:
    """A row a class; many classes are sorted by the shown file's recall, lowest first."""
    shown = [(v, a) for v in compared(report) if (a := summary.main_accuracy(v)) is not None]
    if not shown:
        return []
    rows = [
        ClassRow(
            name,
            shown[0][1].per_class_n[name],
            [
                Cell(accuracy.per_class.get(name), text.percent_range(accuracy.per_class_ci95.get(name), 0))
                for _, accuracy in shown
            ],
        )
        for name in shown[0][1].per_class
    ]
    if len(rows) <= SHOWN_CLASSES:
        return rows
    names = [variant.name for variant, _ in shown]
    at = names.index(report.chosen) if report.chosen in names else 0

    def worst(row: ClassRow) -> float:
        share = row.cells[at].share
        return 2.0 if share is None else share

    return sorted(rows, key=worst)


def matrices(report: RunReport) -> list[tuple[str, Accuracy, bool]]:
    """Each variant's confusions, with whether they are unfolded: those of what ships."""
    shown = report.chosen or report.run.baseline
    found = [(v.name, a, v.name == shown) for v in report.variants if (a := summary.main_accuracy(v))]
    return [item for item in found if item[1].confusion or item[1].most_confused]


def gallery(pictures: Iterable[Picture]) -> list[Shot]:
    """The mistakes; where thumbnails are large, the last go without."""
    shots, letters = [], 0
    for picture in pictures:
        letters += len(picture.png or "")
        shots.append(_shot(picture, picture.png if letters <= PICTURE_LETTERS else None))
    return shots


def _shot(picture: Picture, png: str | None) -> Shot:
    small = False
    if png:
        head = base64.b64decode(png[:44])  # the PNG header has width and height at bytes 16 to 24
        small = len(head) >= 24 and max(head[16:20], head[20:24]) < (64).to_bytes(4, "big")
    return Shot(picture.name, picture.label, picture.predicted, picture.probability, png, small)


def gain(row: TransferRow) -> Gain:
    """A row of the transfer table; whether it is a gain is said by seeds that don't overlap."""
    difference = 100 * (row.pretrained.mean - row.random.mean)
    if min(row.pretrained.seeds) > max(row.random.seeds):
        verdict = "helps: every seed better"
    elif max(row.pretrained.seeds) < min(row.random.seeds):
        verdict = "hurts: every seed worse"
    else:
        verdict = "seeds overlap"
    return Gain(
        per_class=row.per_class,
        pretrained=row.pretrained,
        random=row.random,
        pretrained_range=text.percent_range((min(row.pretrained.seeds), max(row.pretrained.seeds))),
        random_range=text.percent_range((min(row.random.seeds), max(row.random.seeds))),
        gain=text.points(difference, 1, "+"),
        verdict=verdict,
        seeds=len(row.pretrained.seeds),
    )
