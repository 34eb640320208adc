"""The picture of a search: points lost against latency, the front and the chosen point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from toolchain.optimize.outcome import Found
from toolchain.optimize.points import Point
from toolchain.report import svg
from toolchain.report.labels import Box, place, short

_WIDTH = 1000.0
_NAMED = 12  # points of the front whose names are drawn
_FAR = 3.0  # times what the front loses, or the bound allows, that are still drawn to scale
_NEAR = 8.0  # pixels from a disc to its name that need no line between them


@dataclass(frozen=True)
class _Plane:
    """Where points lie: latency by logarithm, points lost upside down, the far ones on the lower edge."""

    frame: svg.Frame
    x: svg.Scale
    y: svg.Scale
    latency: Mapping[str, float]

    def at(self, point: Point) -> tuple[float, float]:
        """A point's place in pixels."""
        return self.x(self.latency[point.name]), self.y(min(point.drop, self.y.high))

    def beyond(self, point: Point) -> bool:
        """Whether it lost more than the picture shows."""
        return point.drop > self.y.high


def drawing(found: Found) -> Markup | None:
    """Points lost against latency: all points, the front as a line, the bounds as dashed ones."""
    if not found.points:
        return None
    plane = _plane(found)
    frame, x, y = plane.frame, plane.x, plane.y
    parts = [
        frame.x_axis(
            x, [(v, f"{v:.3g}") for v in x.ticks(10)], "median latency, ms, plain file (left is faster)"
        ),
        frame.y_axis(y, [(v, f"{v:.3g}") for v in y.ticks(6)], "points lost on val (higher is better)"),
        *_limits(found, plane),
    ]
    line = sorted((p for p in found.points if p.name in found.front), key=lambda p: p.share)
    if len(line) > 1:
        parts.append(svg.path([plane.at(p) for p in line], "curve s0"))
    for point in found.points:
        parts += _mark(point, plane, "c1" if point in line else "c0", chosen=point.name == found.chosen)
    parts += _names(sorted(line, key=lambda p: p.name != found.chosen)[:_NAMED], plane)
    return svg.drawing(_WIDTH, 404, "points lost against latency, all points", parts)


def _plane(found: Found) -> _Plane:
    frame = svg.Frame(62.0, 34.0, _WIDTH - 14, 360.0)
    base = next((p.latency_ms for p in found.points if p.name == "fp32"), found.points[0].latency_ms)
    latency = {p.name: p.share * base for p in found.points}
    drops = [p.drop for p in found.points]
    bounds = [found.asked.max_drop] if found.asked.max_drop is not None else []
    wanted = [*(p.drop for p in found.points if p.name in found.front), *bounds]
    most = min(max([*drops, *bounds]), _FAR * max([*wanted, 1.0]))
    least = min([*drops, *bounds])
    pad = 0.08 * (most - least) or 0.5
    x = svg.Scale(
        0.9 * min(latency.values()), 1.15 * max(latency.values()), frame.left, frame.right, log=True
    )
    return _Plane(frame, x, svg.Scale(least - pad, most + pad, frame.top, frame.bottom), latency)


def _mark(point: Point, plane: _Plane, tone: str, *, chosen: bool) -> Iterator[Markup]:
    """A disc, with a ring if it was chosen; a hollow one on the edge where the point lies further down."""
    x, y = plane.at(point)
    about = (
        f"{point.name}: {plane.latency[point.name]:.3f} ms, {point.drop:.2f} points, {point.megabytes:.2f} MB"
    )
    if chosen:
        yield svg.element("circle", cx=x, cy=y, r=9.0, class_="ring")
    class_ = f"disc beyond {tone}" if plane.beyond(point) else f"disc {tone}"
    yield svg.element("circle", svg.hint(about), cx=x, cy=y, r=5.0, class_=class_)


def _limits(found: Found, plane: _Plane) -> Iterator[Markup]:
    """The bounds that lie inside the picture."""
    frame, x, y = plane.frame, plane.x, plane.y
    most, lost = found.asked.max_latency_ms, found.asked.max_drop
    if most is not None and x.low <= most <= x.high:
        yield svg.line(x(most), frame.top, x(most), frame.bottom, "kept")
    if lost is not None:
        yield svg.line(frame.left, y(lost), frame.right, y(lost), "kept")


def _names(named: Sequence[Point], plane: _Plane) -> Iterator[Markup]:
    """Names beside their discs, the first nearest; a line leads to one that found no place beside it."""
    frame = plane.frame
    inside = Box(frame.left, frame.top, frame.right, frame.bottom)
    taken = [Box(cx - 6, cy - 6, cx + 6, cy + 6) for cx, cy in map(plane.at, named)]
    for point in named:
        cx, cy = plane.at(point)
        words = short(point.name, 28)
        box = place((words,), (cx, cy, 6.0), taken, inside)
        taken.append(box)
        ends = max(box.left, min(cx, box.right)), max(box.top, min(cy, box.bottom))
        if max(abs(ends[0] - cx), abs(ends[1] - cy)) > 6.0 + _NEAR:
            yield svg.line(cx, cy, *ends, "leader")
        yield svg.label(box.left, box.top + 14, words, "name")
