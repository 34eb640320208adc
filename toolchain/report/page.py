"""The page's content, worked out: rows, tiles and drawings that the templates only lay out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from toolchain.measure.metrics import Accuracy
from toolchain.record import JSON
from toolchain.report import charts, pruning, summary, text
from toolchain.report.model import Agreement, Gate, Latency, RunReport, Variant
from toolchain.report.parts import Parity, PruningSensitivity, Sensitivity
from toolchain.report.rows import (
    SHOWN_CLASSES,
    ClassRow,
    Gain,
    Row,
    Shot,
    class_rows,
    compared,
    gain,
    gallery,
    matrices,
    variant_row,
)
from toolchain.report.sensitivity import drawing

MATRIX_CLASSES = 40  # the most classes whose confusion matrix can be read as a table
SHOWN_MISTAKES = 24
SHOWN_GATES = 80


class Tile(NamedTuple):
    """A figure on top of the page."""

    title: str
    figure: str
    beside: str


@dataclass(frozen=True)
class Page:
    """Everything the templates need beside the report itself."""

    headline: str
    cautions: list[str]
    tiles: list[Tile]
    sections: list[tuple[str, str]]
    metric: str
    condition: str
    rows: list[Row]
    made_by: list[tuple[str, str]]
    gates: list[Gate]
    gates_left_out: int
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
    sensitivity: list[tuple[Markup, Sensitivity]]
    pruning: list[tuple[Markup, PruningSensitivity]]
    transfer: list[Gain]
    run_facts: list[tuple[str, str]]
    host_facts: list[tuple[str, str]]
    matrix_classes: int = MATRIX_CLASSES


def page(report: RunReport) -> Page:
    """Work out the page of a report."""
    classes = class_rows(report)
    agreed = list(dict.fromkeys(split for v in report.variants for split in v.agreement))
    drawn = [(charts.curves(curve), curve) for curve in report.curves]
    return Page(
        headline=summary.headline(report),
        cautions=summary.cautions(report),
        tiles=tiles(report),
        sections=_sections(report, bool(classes)),
        metric=summary.METRIC_WORDS[report.run.metric],
        condition=_condition(report),
        rows=[variant_row(report, variant) for variant in report.variants],
        made_by=[(v.name, " → ".join(v.made_by)) for v in report.variants if v.made_by],
        gates=_gates(report),
        gates_left_out=max(0, len(report.gates) - SHOWN_GATES),
        trade_offs=_drawn(charts.trade_off(report, provider) for provider in summary.providers(report)),
        class_variants=[variant.name for variant in compared(report)],
        classes=classes[:SHOWN_CLASSES],
        classes_left_out=max(0, len(classes) - SHOWN_CLASSES),
        matrices=matrices(report),
        mistakes=gallery(report.mistakes[:SHOWN_MISTAKES]),
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
        sensitivity=[(drawing(found), found) for found in report.sensitivity],
        pruning=[(pruning.drawing(found), found) for found in report.pruning],
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
    if accuracy is not None:
        share, ends = summary.metric(report, accuracy)
        beside = f"95 %: {text.percent_range(ends)}"
        if not same and other is not None:
            beside += f"; {report.run.baseline} {text.percent(summary.metric(report, other)[0])}"
        title = f"{summary.METRIC_WORDS[report.run.metric]}, test"
        found.append(Tile(title if report.chosen else f"{title} ({shown.name})", text.percent(share), beside))
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
        "sensitivity": ("Sensitivity", bool(report.sensitivity or report.pruning)),
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


def _gates(report: RunReport) -> list[Gate]:
    """All gates; of very many (a floor for each of a thousand classes) those that fail, and some others."""
    if len(report.gates) <= SHOWN_GATES:
        return list(report.gates)
    return sorted(report.gates, key=lambda gate: gate.passed)[:SHOWN_GATES]


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


def _run_facts(report: RunReport) -> list[tuple[str, str]]:
    run, weights = report.run, report.run.weights
    found = [("Started", run.started), ("This start took", text.wall(run.seconds)), ("Seed", str(run.seed))]
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
