"""The page's content, worked out: rows, tiles and drawings that the templates only lay out."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from toolchain.measure.metrics import Accuracy
from toolchain.record import JSON
from toolchain.report import charts, summary, text
from toolchain.report.model import Agreement, Drop, Latency, RunReport, Variant
from toolchain.report.parts import Parity, Picture, Spread, TransferRow

MATRIX_CLASSES = 40  # the most classes whose confusion matrix can be read as a table
SHOWN_CLASSES = 60
SHOWN_MISTAKES = 24


class Tile(NamedTuple):
    """A figure on top of the page."""

    title: str
    figure: str
    beside: str


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


@dataclass(frozen=True)
class Page:
    """Everything the templates need beside the report itself."""

    headline: str
    cautions: list[str]
    tiles: list[Tile]
    sections: list[tuple[str, str]]
    condition: str
    rows: list[Row]
    made_by: list[tuple[str, str]]
    trade_offs: list[Markup]
    class_variants: list[str]
    classes: list[ClassRow]
    classes_left_out: int
    matrices: list[tuple[str, Accuracy, bool]]
    mistakes: list[Shot]
    reliability: list[Markup]
    ridges: list[tuple[Markup, str]]
    latency_rows: list[tuple[str, str, Latency]]
    parity: list[tuple[str, str, Parity]]
    agreement: list[tuple[str, list[Agreement | None]]]
    agreement_splits: list[str]
    placement: list[tuple[str, str, Mapping[str, int]]]
    data_labels: list[str]
    data_labels_left_out: int
    curves: list[tuple[Markup, object]]
    transfer: list[Gain]
    run_facts: list[tuple[str, str]]
    host_facts: list[tuple[str, str]]
    matrix_classes: int = MATRIX_CLASSES


def page(report: RunReport) -> Page:
    """Work out the page of a report."""
    classes = _classes(report)
    agreed = list(dict.fromkeys(split for v in report.variants for split in v.agreement))
    drawn = [(charts.curves(curve), curve) for curve in report.curves]
    return Page(
        headline=summary.headline(report),
        cautions=summary.cautions(report),
        tiles=tiles(report),
        sections=_sections(report, bool(classes)),
        condition=_condition(report),
        rows=[_row(report, variant) for variant in report.variants],
        made_by=[(v.name, " → ".join(v.made_by)) for v in report.variants if v.made_by],
        trade_offs=_drawn(charts.trade_off(report, provider) for provider in summary.providers(report)),
        class_variants=[variant.name for variant in _compared(report)],
        classes=classes[:SHOWN_CLASSES],
        classes_left_out=max(0, len(classes) - SHOWN_CLASSES),
        matrices=_matrices(report),
        mistakes=[_shot(picture) for picture in report.mistakes[:SHOWN_MISTAKES]],
        reliability=[charts.reliability(found) for found in report.calibration],
        ridges=_ridges(report),
        latency_rows=[
            (v.name, p, row) for v in report.variants for p, rows in v.latency.items() for row in rows
        ],
        parity=[(v.name, against, found) for v in report.variants for against, found in v.parity.items()],
        agreement=[(v.name, [v.agreement.get(s) for s in agreed]) for v in report.variants if v.agreement],
        agreement_splits=agreed,
        placement=[(v.name, p, nodes) for v in report.variants for p, nodes in v.placement.items()],
        data_labels=list(report.data.labels[:SHOWN_CLASSES]),
        data_labels_left_out=max(0, len(report.data.labels) - SHOWN_CLASSES),
        curves=[(drawing, curve) for drawing, curve in drawn if drawing is not None],
        transfer=[gain(row) for row in report.transfer.rows] if report.transfer else [],
        run_facts=_run_facts(report),
        host_facts=[(name, words(value)) for name, value in report.host.items()],
    )


def tiles(report: RunReport) -> list[Tile]:
    """The shipped file's figures (the baseline's, when nothing ships), each with the baseline's beside."""
    shown, baseline = report.variant(report.chosen) or report.baseline, report.baseline
    if shown is None:
        return []
    same = baseline is None or shown.name == baseline.name
    found = []
    accuracy, other = summary.main_accuracy(shown), summary.main_accuracy(baseline) if baseline else None
    balanced = report.run.metric == "balanced"
    if accuracy is not None:
        share, ends = (
            (accuracy.balanced, accuracy.balanced_ci95) if balanced else (accuracy.top1, accuracy.ci95)
        )
        beside = f"95 %: {text.percent_range(ends)}"
        if not same and other is not None:
            beside += f"; {report.run.baseline} {text.percent(other.balanced if balanced else other.top1)}"
        found.append(
            Tile(f"{'Balanced accuracy' if balanced else 'Top-1'}, test", text.percent(share), beside)
        )
    latency, slow = summary.main_latency(shown), summary.main_latency(baseline) if baseline else None
    if latency is not None:
        beside = _condition(report)
        if not same and slow is not None:
            beside = f"{report.run.baseline} {text.duration(slow.p50_ns)}; {beside}"
        found.append(Tile("Median latency", text.duration(latency.p50_ns), beside))
    speedup = summary.main_speedup(report, shown.name)
    if speedup is not None:
        beside = f"95 %: {speedup.ci95[0]:.2f}{text.DASH}{speedup.ci95[1]:.2f}"
        found.append(Tile(f"Speed against {speedup.over}", text.times(speedup.ratio), beside))
    beside = "" if same or baseline is None else f"{baseline.name} {text.size(baseline.bytes)}"
    found.append(Tile("File", text.size(shown.bytes), beside))
    mine = [gate for gate in report.gates if gate.variant == shown.name]
    if mine:
        passed = f"{sum(gate.passed for gate in mine)} of {len(mine)}"
        found.append(Tile("Gates passed", passed, f"by {shown.name}"))
    return found


def _sections(report: RunReport, classes: bool) -> list[tuple[str, str]]:
    there = {
        "variants": ("Variants", True),
        "gates": ("Gates", bool(report.gates)),
        "accuracy": ("Accuracy", classes),
        "mistakes": ("Mistakes", bool(report.mistakes)),
        "calibration": ("Calibration", bool(report.calibration)),
        "latency": ("Latency", any(v.latency for v in report.variants)),
        "parity": ("Parity", any(v.parity or v.placement or v.agreement for v in report.variants)),
        "data": ("Data", True),
        "training": ("Training", bool(report.curves or report.transfer)),
        "reproduce": ("Reproduce", True),
    }
    return [(anchor, words) for anchor, (words, shown) in there.items() if shown]


def _condition(report: RunReport) -> str:
    """What the main latency was measured under."""
    shown = report.baseline or next(iter(report.variants), None)
    latency = summary.main_latency(shown) if shown else None
    if shown is None or latency is None:
        return ""
    threads = text.plural(latency.threads, "thread")
    return f"{next(iter(shown.latency))}, {threads}, batch {latency.batch}, {latency.input}"


def _row(report: RunReport, variant: Variant) -> Row:
    accuracy = summary.main_accuracy(variant)
    balanced = report.run.metric == "balanced"
    latency, speedup = summary.main_latency(variant), summary.main_speedup(report, variant.name)
    share = None if accuracy is None else accuracy.balanced if balanced else accuracy.top1
    ends = None if accuracy is None else accuracy.balanced_ci95 if balanced else accuracy.ci95
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


def _compared(report: RunReport) -> list[Variant]:
    """The variants shown class by class: at most six, the baseline and the chosen one among them."""
    scored = [v for v in report.variants if v.accuracy]
    first = [v for v in scored if v.name in (report.run.baseline, report.chosen)]
    kept = {v.name for v in [*first, *(v for v in scored if v not in first)][:6]}
    return [v for v in scored if v.name in kept]


def _classes(report: RunReport) -> list[ClassRow]:
    """A row a class; many classes are sorted by the shown file's recall, lowest first."""
    compared = [(v, a) for v in _compared(report) if (a := summary.main_accuracy(v)) is not None]
    if not compared:
        return []
    rows = [
        ClassRow(
            name,
            compared[0][1].per_class_n[name],
            [
                Cell(accuracy.per_class.get(name), text.percent_range(accuracy.per_class_ci95.get(name), 0))
                for _, accuracy in compared
            ],
        )
        for name in compared[0][1].per_class
    ]
    if len(rows) <= SHOWN_CLASSES:
        return rows
    names = [variant.name for variant, _ in compared]
    at = names.index(report.chosen) if report.chosen in names else 0

    def worst(row: ClassRow) -> float:
        share = row.cells[at].share
        return 2.0 if share is None else share

    return sorted(rows, key=worst)


def _matrices(report: RunReport) -> list[tuple[str, Accuracy, bool]]:
    """Each variant's confusions, with whether they are unfolded: those of what ships."""
    shown = report.chosen or report.run.baseline
    found = [(v.name, a, v.name == shown) for v in report.variants if (a := summary.main_accuracy(v))]
    return [item for item in found if item[1].confusion or item[1].most_confused]


def _shot(picture: Picture) -> Shot:
    small = False
    if picture.png:
        head = base64.b64decode(picture.png[:44])  # the PNG header has width and height at bytes 16 to 24
        small = len(head) >= 24 and max(head[16:20], head[20:24]) < (64).to_bytes(4, "big")
    return Shot(picture.name, picture.label, picture.predicted, picture.probability, picture.png, small)


def _ridges(report: RunReport) -> list[tuple[Markup, str]]:
    """One drawing a provider, form, thread count, batch and input."""
    conditions: dict[tuple[str, str, int, int, str], list[tuple[Variant, Latency]]] = {}
    for variant in report.variants:
        for provider, rows in variant.latency.items():
            for row in rows:
                key = (provider, row.file, row.threads, row.batch, row.input)
                conditions.setdefault(key, []).append((variant, row))
    found = []
    for (provider, file, threads, batch, given), rows_ in list(conditions.items())[:4]:
        words = f"{file} file on {provider}, {text.plural(threads, 'thread')}, batch {batch}, input {given}"
        drawing = charts.latencies(report, rows_, f"latency of the {words}")
        if drawing is not None:
            found.append((drawing, f"How often each time was seen: {words}. Bars: p50, p90, p99."))
    return found


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


def _run_facts(report: RunReport) -> list[tuple[str, str]]:
    run, weights = report.run, report.run.weights
    found = [("Started", run.started), ("Took", text.wall(run.seconds)), ("Seed", str(run.seed))]
    trained_on = run.device + (f", {text.plural(run.threads, 'thread')}" if run.threads else "")
    found.append(("Trained on", trained_on))
    if weights is not None:
        source = f"{weights.architecture}, weights: {weights.source}"
        found.append(("Backbone", source + (f" {weights.weights}" if weights.weights else "")))
        found.append(("Licence of the weights", weights.licence or "not stated"))
    if report.bundle is not None:
        found += [("Bundle", report.bundle.path), ("Identity", report.bundle.identity)]
    return found


def words(value: JSON) -> str:
    """Any plain value in words, for lists of facts."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(words(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return text.NOTHING if value is None else str(text.printable(str(value)))


def _drawn(drawings: Iterable[Markup | None]) -> list[Markup]:
    return [drawing for drawing in drawings if drawing is not None]
