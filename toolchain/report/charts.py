"""The report's pictures of figures, as SVG that lives in the page and takes its colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup

from toolchain.measure.calibration import Calibration
from toolchain.measure.metrics import Bin
from toolchain.report import svg, text
from toolchain.report.labels import Box, place, short
from toolchain.report.model import Latency, RunReport, Variant
from toolchain.report.parts import Curve
from toolchain.report.summary import METRIC_WORDS, main_latency, metric

COLOURS = 8
_WIDTH = 1000.0


def colour(report: RunReport, name: str) -> str:
    """The class that a variant is drawn in, everywhere the same."""
    names = [variant.name for variant in report.variants]
    return f"c{names.index(name) % COLOURS}" if name in names else "c0"


def trade_off(report: RunReport, provider: str) -> Markup | None:
    """Accuracy on test against the plain file's median latency; the area of a disc is the file's size."""
    points = []
    for variant in report.variants:
        latency, accuracy = main_latency(variant, provider), variant.accuracy.get(provider)
        if latency is not None and latency.p50_ns is not None and accuracy is not None:
            points.append((variant, latency.p50_ns / 1e6, *metric(report, accuracy)))
    if not points:
        return None
    words_of_metric = METRIC_WORDS[report.run.metric]
    frame = svg.Frame(62.0, 34.0, _WIDTH - 14, 340.0)
    x = svg.Scale(0.0, 1.22 * max(p[1] for p in points), frame.left, frame.right)
    low, high = min(p[3][0] for p in points), max(p[3][1] for p in points)
    pad = max(0.15 * (high - low), 0.004)
    y = svg.Scale(max(0.0, low - pad), min(1.0, high + pad), frame.bottom, frame.top)
    parts = [
        frame.x_axis(x, _words(x.ticks(8)), f"median latency, ms, plain file, {provider} (left is faster)"),
        frame.y_axis(y, [(v, text.percent(v)) for v in y.ticks(6)], f"{words_of_metric} on test"),
    ]
    largest = max(p[0].bytes for p in points)
    discs = [
        (v, x(ms), y(value), 5 + 17 * (v.bytes / largest) ** 0.5, y(ends[0]), y(ends[1]))
        for v, ms, value, ends in points
    ]
    taken = [Box(cx - r, cy - r, cx + r, cy + r) for _, cx, cy, r, _, _ in discs]
    for variant, cx, cy, radius, low_y, high_y in discs:
        parts.append(_disc(report, variant, (cx, cy, radius), (low_y, high_y)))
        words = (short(variant.name, 28), text.size(variant.bytes))
        box = place(words, (cx, cy, radius + 3), taken, Box(frame.left, frame.top, frame.right, frame.bottom))
        taken.append(box)
        parts.append(svg.label(box.left, box.top + 12, words[0], "name"))
        parts.append(svg.label(box.left, box.top + 26, words[1], "tick"))
    return svg.drawing(_WIDTH, 384, f"{words_of_metric} against latency on {provider}", parts)


def _disc(
    report: RunReport, variant: Variant, disc: tuple[float, float, float], ends: tuple[float, float]
) -> Markup:
    """A file's disc with its whisker; the chosen one has a ring."""
    cx, cy, radius = disc
    tone = colour(report, variant.name)
    words = svg.hint(f"{variant.name}: {text.size(variant.bytes)}, {variant.reason}")
    drawn = [svg.line(cx, ends[0], cx, ends[1], f"whisker {tone}")]
    if variant.name == report.chosen:
        drawn.append(svg.element("circle", cx=cx, cy=cy, r=radius + 4, class_="ring"))
    drawn.append(svg.element("circle", words, cx=cx, cy=cy, r=radius, class_=f"disc {tone}"))
    return svg.joined(drawn)


def latencies(report: RunReport, rows: Sequence[tuple[Variant, Latency]], title: str) -> Markup | None:
    """One ridge a variant: how its raw times are spread, with p50, p90 and p99 marked where they are known."""
    drawn = [(variant, row) for variant, row in rows if len(row.samples_ns) >= 2]
    if not drawn:
        return None
    step, left = 46.0, 168.0
    frame = svg.Frame(left, 26.0, _WIDTH - 110, 26.0 + step * len(drawn))
    low = min(min(row.samples_ns) for _, row in drawn) * 0.95
    high = max(_visible_end(row) for _, row in drawn) * 1.05
    x = svg.Scale(low / 1e6, high / 1e6, frame.left, frame.right, log=high > 2.5 * low)
    parts = [frame.x_axis(x, _words(x.ticks(9)), "latency, ms" + (" (logarithmic)" if x.log else ""))]
    for number, (variant, row) in enumerate(drawn):
        floor = frame.top + step * (number + 1) - 4
        parts.append(svg.label(left - 12, floor - 6, short(variant.name, 24), "name", "end"))
        parts.append(_ridge(row, x, floor, step - 12, colour(report, variant.name)))
        beyond = sum(ns > high for ns in row.samples_ns)
        if beyond:
            share = beyond / len(row.samples_ns)
            parts.append(svg.label(frame.right + 8, floor - 2, f"{text.percent(share)} beyond →", "tick"))
    return svg.drawing(_WIDTH, frame.bottom + 46, title, parts)


def _visible_end(row: Latency) -> float:
    """Where a ridge's axis may end: past its p99, unless a few spikes would squeeze everything else."""
    body = 1.3 * float(np.quantile(row.samples_ns, 0.95))
    p99 = 1.03 * (row.p99_ns or 0)
    return min(float(max(row.samples_ns)), p99 if body < p99 < 2 * body else body)


def _ridge(row: Latency, x: svg.Scale, floor: float, height: float, tone: str) -> Markup:
    edges = np.linspace(x.start, x.end, 121)
    pixels = np.array([x(ns / 1e6) for ns in row.samples_ns])
    counts = np.histogram(pixels, edges)[0].astype(float)
    smooth = np.convolve(counts, [0.1, 0.24, 0.32, 0.24, 0.1], mode="same")
    tops = floor - height * smooth / max(smooth.max(), 1e-9)
    middles = (edges[:-1] + edges[1:]) / 2
    outline = [
        (float(edges[0]), floor),
        *zip(middles.tolist(), tops.tolist(), strict=True),
        (float(edges[-1]), floor),
    ]
    drawn = [
        svg.path(outline, f"ridge {tone}"),
        svg.line(float(edges[0]), floor, float(edges[-1]), floor, "base"),
    ]
    for name, value in (("p50", row.p50_ns), ("p90", row.p90_ns), ("p99", row.p99_ns)):
        if value is not None and x(value / 1e6) <= x.end:
            at = x(value / 1e6)
            mark = svg.hint(f"{name} {text.duration(value)}")
            drawn.append(
                svg.element(
                    "rect", mark, x=at - 1, y=floor - 9, width=2.0, height=13.0, class_=f"mark {name}"
                )
            )
    return svg.joined(drawn)


def curves(curve: Curve) -> Markup | None:
    """Losses on the left, accuracies on the right, by epoch; a line stands at the kept epoch."""
    names = [n for n in curve.series if "lr" not in n.split("_") and n != "seconds"]
    losses = [n for n in names if "loss" in n]
    shares = [n for n in names if n not in losses]
    panels = [(series, words) for series, words in ((losses, "loss, nats"), (shares, "accuracy")) if series]
    if not panels or not curve.epochs:
        return None
    width = _WIDTH / 2
    parts = [
        _panel(curve, series, words, svg.Frame(width * k + 56, 48.0, width * (k + 1) - 14, 240.0))
        for k, (series, words) in enumerate(panels)
    ]
    return svg.drawing(width * len(panels), 284, f"training of {curve.artifact}", parts)


def _panel(curve: Curve, names: Sequence[str], words: str, frame: svg.Frame) -> Markup:
    values = [v for name in names for v in curve.series[name] if v is not None]
    if not values:
        return Markup()
    pad = 0.06 * (max(values) - min(values)) or 0.02
    top = max(values) + pad
    if "loss" not in words:
        top = min(1.0, top) if max(values) <= 1 else top
    low = 0.0 if "loss" in words else max(0.0, min(values) - pad)
    y = svg.Scale(low, top, frame.bottom, frame.top)
    first, last = curve.epochs[0], max(curve.epochs[-1], curve.epochs[0] + 1)
    x = svg.Scale(first, last, frame.left, frame.right)
    ticks = [(v, f"{v:.0f}") for v in x.ticks(8) if v == round(v)]
    shown = [
        (v, f"{v:.3g}" if "loss" in words else text.percent(v, 0 if top > 0.3 + y.low else 1))
        for v in y.ticks(5)
    ]
    parts = [frame.x_axis(x, ticks, "epoch"), frame.y_axis(y, shown, words)]
    if curve.kept is not None:
        parts.append(svg.line(x(curve.kept), frame.top, x(curve.kept), frame.bottom, "kept"))
    at = frame.left + 56
    for number, name in enumerate(names):
        tone = f"s{number % COLOURS}"
        drawn = [(x(e), y(v)) for e, v in zip(curve.epochs, curve.series[name], strict=True) if v is not None]
        if len(drawn) == 1:
            parts.append(svg.element("circle", cx=drawn[0][0], cy=drawn[0][1], r=3.0, class_=f"dot {tone}"))
        elif drawn:
            parts.append(svg.path(drawn, f"curve {tone}", svg.hint(name)))
        legend = short(name.replace("_", " "), 22)
        parts += [
            svg.line(at, frame.top - 16, at + 18, frame.top - 16, f"curve {tone}"),
            svg.label(at + 23, frame.top - 12, legend, "tick"),
        ]
        at += 36 + 6.2 * len(legend)
    return svg.joined(parts)


def reliability(found: Calibration) -> Markup:
    """How often answers hold against what they claim, before and after the temperature."""
    frame = svg.Frame(56.0, 40.0, 426.0, 320.0)
    x, y = svg.Scale(0, 1, frame.left, frame.right), svg.Scale(0, 1, frame.bottom, frame.top)
    ticks = [(v, f"{100 * v:.0f} %") for v in (0, 0.25, 0.5, 0.75, 1)]
    parts = [
        frame.x_axis(x, ticks, "probability claimed"),
        frame.y_axis(y, ticks, f"answers that hold, {found.split}"),
        svg.line(x(0), y(0), x(1), y(1), "diagonal"),
        _bins(found.before, x, y, "raw"),
        _bins(found.after, x, y, "heated"),
    ]
    for row, (class_, words) in enumerate(
        (("raw", "raw"), ("heated", f"at temperature {found.temperature:.2f}"))
    ):
        at = frame.top + 14 + 18 * row
        parts.append(svg.element("circle", cx=frame.left + 14, cy=at - 4, r=5.0, class_=class_))
        parts.append(svg.label(frame.left + 24, at, words, "tick"))
    return svg.drawing(460, 362, f"reliability on {found.split}", parts)


def _bins(bins: Iterable[Bin], x: svg.Scale, y: svg.Scale, class_: str) -> Markup:
    filled = [(b.confidence, b.accuracy, b.n) for b in bins]
    most = max(n for _, _, n in filled)
    return svg.joined(
        svg.element(
            "circle",
            svg.hint(
                f"{text.plural(n, 'answer')}: claimed {text.percent(claimed)}, held {text.percent(held)}"
            ),
            cx=x(claimed),
            cy=y(held),
            r=2.5 + 9 * (n / most) ** 0.5,
            class_=class_,
        )
        for claimed, held, n in filled
        if claimed is not None and held is not None
    )


def _words(ticks: Sequence[float]) -> list[tuple[float, str]]:
    return [(v, f"{v:.3g}") for v in ticks]
