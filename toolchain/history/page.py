"""A history as one self-contained HTML page, in the style of the reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from toolchain.history.changes import Change
from toolchain.history.trends import History, Point, Trend
from toolchain.report import svg, text
from toolchain.report.labels import short
from toolchain.report.style import render_page

_WIDTH, _HEIGHT = 1000.0, 210.0
_FRAME = svg.Frame(84.0, 30.0, _WIDTH - 20, _HEIGHT - 46)
_DATES = 6
_HOVERED = 1500  # points that get a tooltip; more would make the page slow


class Mark(NamedTuple):
    """A change in words; kind is the pill's class."""

    kind: str
    ratio: str
    words: str


class Section(NamedTuple):
    """One trend, laid out."""

    model: str
    figure: str
    condition: str
    drawing: Markup | None
    summary: str
    changes: list[Mark]


class Machine(NamedTuple):
    """The trends of one kind of machine."""

    anchor: str
    name: str
    trends: list[Section]


class Page(NamedTuple):
    """What the template lays out."""

    title: str
    headline: str
    cautions: list[str]
    machines: list[Machine]


def render(found: History, title: str) -> str:
    """The page; every name in it is escaped, nothing is loaded from elsewhere."""
    shown = Page(str(text.printable(title)), _headline(found), _cautions(found), _machines(found))
    return render_page("history.html.j2", page=shown)


def _headline(found: History) -> str:
    moved = sum(bool(trend.changes) for trend in found.trends)
    machines = len({trend.machine for trend in found.trends})
    changed = f"{moved} of them changed their level" if moved else "none of them changed its level"
    return (
        f"{text.plural(found.records, 'record')}, {text.plural(len(found.trends), 'trend')} on "
        f"{text.plural(machines, 'kind')} of machine; {changed}."
    )


def _cautions(found: History) -> list[str]:
    return [*(str(text.printable(line)) for line in found.damaged), *not_drawn(found)]


def not_drawn(found: History) -> list[str]:
    """A sentence for each kind of record that is sound and not drawn."""
    counted = sorted(found.left_out.items())
    return [
        str(text.printable(f"{text.plural(n, 'record')} of kind {kind} not drawn")) for kind, n in counted
    ]


def _machines(found: History) -> list[Machine]:
    grouped = groupby(found.trends, key=lambda trend: trend.machine)
    return [
        Machine(f"machine-{number}", str(text.printable(name)), [_section(trend) for trend in trends])
        for number, (name, trends) in enumerate(grouped)
    ]


def _section(trend: Trend) -> Section:
    last = trend.points[-1]
    summary = f"{text.plural(len(trend.points), 'record')}; the last, of {_day(last)}: {value(last.value, trend.unit)}."
    model, figure, condition = (str(text.printable(n)) for n in (trend.model, trend.figure, trend.condition))
    marks = [_mark(change, trend) for change in trend.changes]
    drawing = _drawing(trend) if len(trend.points) > 1 else None
    return Section(model, figure, condition, drawing, summary, marks)


def _mark(change: Change, trend: Trend) -> Mark:
    at = trend.points[change.index]
    more = change.after > change.before
    percent = f"{'+' if more else text.MINUS}{100 * abs(change.ratio - 1):.1f} %"
    words = (
        f"from {value(change.before, trend.unit)} to {value(change.after, trend.unit)} with the record of "
        f"{_day(at)}: {at.about}"
    )
    return Mark("ok" if more == trend.more_is_better else "failed", percent, str(text.printable(words)))


def value(figure: float, unit: str) -> str:
    """A figure in its unit."""
    if unit == "ns":
        return text.duration(figure)
    if unit == "per_s":
        return f"{figure:.4g}/s" if figure < 1000 else f"{figure:.1f}/s"
    return text.size(round(figure)) if unit == "bytes" else f"{figure:.3f}"


def _day(point: Point) -> str:
    return str(text.printable(point.started[:10]))


def _drawing(trend: Trend) -> Markup:
    """The points, their whiskers, the level of each segment, and a dashed line at each change."""
    points = trend.points
    ends = [
        end
        for p in points
        for end in (p.value, p.low, p.high)
        if end is not None and math.isfinite(end) and end > 0
    ]
    low, high = min(ends), max(ends)
    pad = 0.08 * (high - low) or 0.05 * high
    y = svg.Scale(max(0.0, low - pad), high + pad, _FRAME.bottom, _FRAME.top)
    x = svg.Scale(-0.5, len(points) - 0.5, _FRAME.left, _FRAME.right)
    parts = [
        _FRAME.x_axis(x, _dates(points), "records in order of time"),
        _FRAME.y_axis(y, [(tick, value(tick, trend.unit)) for tick in y.ticks(4)], trend.figure),
    ]
    for change in trend.changes:
        at = x(change.index - 0.5)
        parts.append(svg.line(at, _FRAME.top, at, _FRAME.bottom, "kept"))
    parts += _levels(trend, x, y)
    for number, point in enumerate(points):
        at = x(number)
        if point.low is not None and point.high is not None:
            parts.append(svg.line(at, y(point.low), at, y(point.high), "whisker c1"))
        words = f"{value(point.value, trend.unit)}, {point.started}, {point.about}"
        hint = svg.hint(str(text.printable(words))) if len(points) <= _HOVERED else Markup()
        parts.append(svg.element("circle", hint, cx=at, cy=y(point.value), r=3.0, class_="disc c1"))
    return svg.drawing(_WIDTH, _HEIGHT, f"{short(trend.model, 40)}: {trend.figure}", parts)


def _levels(trend: Trend, x: svg.Scale, y: svg.Scale) -> list[Markup]:
    """A line at the median of each segment, where there is more than one."""
    if not trend.changes:
        return []
    cuts = [0, *(change.index for change in trend.changes), len(trend.points)]
    heights = [trend.changes[0].before, *(change.after for change in trend.changes)]
    return [
        svg.path([(x(a - 0.5), y(level)), (x(b - 0.5), y(level))], "curve s0")
        for a, b, level in zip(cuts, cuts[1:], heights, strict=False)
    ]


def _dates(points: Sequence[Point]) -> list[tuple[float, str]]:
    """About six days along the axis."""
    step = max(1, math.ceil(len(points) / _DATES))
    return [(float(number), _day(points[number])) for number in range(0, len(points), step)]
