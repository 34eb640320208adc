"""A search as JSON, as one self-contained page, and in the few lines that a terminal gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from toolchain.optimize.outcome import Found
from toolchain.optimize.points import Failure, Point, Probe, told
from toolchain.optimize.session import fastest
from toolchain.record import JSON
from toolchain.report import pruning, sensitivity, style, svg, text
from toolchain.report.labels import Box, place, short
from toolchain.report.parts import PruningSensitivity, Sensitivity

SCHEMA_VERSION = 1
_WIDTH = 1000.0
_NAMED = 12  # points of the front whose names are drawn
_LAYERS = 40


class Row(NamedTuple):
    """A measured point, laid out."""

    name: str
    kind: str
    status: str
    latency: str
    faster: str
    accuracy: str
    drop: str
    size: str
    memory: str
    seconds: str
    why: str


class Layer(NamedTuple):
    """A layer of the latency table: its times from the whole network's to the narrowest, and what was pruned."""

    name: str
    times: str
    pruned: str


def render_json(found: Found) -> str:
    """Everything, for machines; see docs/optimize.md."""
    told_ = {
        "schema_version": SCHEMA_VERSION, "name": found.name, "metric": found.metric, "asked": asdict(found.asked),
        "chosen": found.chosen, "reasons": list(found.reasons), "front": list(found.front),
        "closest": list(found.closest), "would_do": list(found.would_do), "stopped": found.stopped,
        "notes": list(found.notes), "seconds": round(found.seconds, 1),
        "test": None if found.tested is None else asdict(found.tested),
        "points": [_plain(point) for point in found.points],
        "not_made": [
            {"name": o.design.name, "why": o.why} for o in found.outcomes if isinstance(o, Failure)
        ],
        "not_trained": [
            {"name": o.design.name, "latency_ms": o.latency_ms} for o in found.outcomes if isinstance(o, Probe)
        ],
        "widths": dict(found.widths), "threads": {str(n): ms for n, ms in found.threads.items()},
        "layers": [asdict(layer) for layer in found.costs.table.layers] if found.costs else [],
        "sensitivity": {name: one.model_dump(mode="json") for name, one in _sensitive(found).items()},
        "host": dict(found.host),
    }  # fmt: skip
    return json.dumps(told_, indent=1) + "\n"


def _plain(point: Point) -> dict[str, JSON]:
    plain = asdict(point)
    return {"name": point.name, "feasible": point.feasible, **plain}


def summary(found: Found, out: Path) -> str:
    """The end in lines: what was chosen and why, or what would have to give."""
    lines = [headline(found)]
    chosen = found.point(found.chosen)
    if chosen is not None:
        lines += [f"  {line}" for line in found.reasons]
        if found.tested is not None:
            t = found.tested
            lines.append(
                f"  test, read once: top-1 {t.top1:.2f} %, balanced {t.balanced:.2f} %, lost {t.drop:.2f} points"
            )
    else:
        lines += [f"  closest: {_words(point)}" for name in found.closest if (point := found.point(name))]
        lines += [f"  {line}" for line in found.would_do]
    lines += [f"  {threads(found)}"] if found.threads else []
    lines += [f"  note: {line}" for line in found.notes]
    lines.append(f"  {len(found.points)} points in {text.wall(found.seconds)}; {found.stopped}")
    lines.append(f"search: {out / 'optimize.html'}")
    if chosen is not None:
        lines.append(f"bundle: {out / 'bundle'}")
    return "\n".join(lines)


def headline(found: Found) -> str:
    """What came out, in a sentence."""
    chosen = found.point(found.chosen)
    if chosen is None:
        return f"{found.name}: no point of {len(found.points)} keeps the bounds ({_bounds(found)})"
    return f"{found.name}: {chosen.name}, {chosen.latency_ms:.3f} ms, {1 / chosen.share:.2f} times faster than fp32, " \
        f"{chosen.megabytes:.2f} MB, loses {chosen.drop:.2f} points on val"  # fmt: skip


def threads(found: Found) -> str:
    """What the chosen file takes with all threads and with fewer."""
    each = ", ".join(f"{text.plural(n, 'thread')} {ms:.3f} ms" for n, ms in found.threads.items())
    best = fastest(found.threads)
    if best == found.asked.threads:
        return f"by threads: {each}"
    return f"by threads: {each}; {text.plural(best, 'thread')} would do (--threads {best})"


def _bounds(found: Found) -> str:
    asked = found.asked
    given = [
        (asked.max_latency_ms, "latency {:g} ms"), (asked.max_drop, "drop {:g} points"),
        (asked.max_megabytes, "size {:g} MB"), (asked.max_memory_mb, "memory {:g} MB"),
    ]  # fmt: skip
    return (
        ", ".join(words.format(value) for value, words in given if value is not None) or "the recipe's gates"
    )


def _words(point: Point) -> str:
    misses = ", ".join(told(miss) for miss in point.misses)
    return f"{point.name} {point.latency_ms:.3f} ms, {point.megabytes:.2f} MB: " + (
        f"misses {misses}" if misses else "not shown to be faster than fp32"
    )


def render_page(found: Found) -> str:
    """The page; every name in it is escaped, nothing is loaded from elsewhere."""
    return style.render_page(
        "optimize.html.j2", found=found, headline=headline(found), bounds=_bounds(found), drawing=drawing(found),
        rows=[_row(found, point) for point in sorted(found.points, key=lambda p: p.share)],
        failed=[(o.design.name, o.why) for o in found.outcomes if isinstance(o, Failure)],
        probed=[(o.design.name, f"{o.latency_ms:.3f} ms") for o in found.outcomes if isinstance(o, Probe)],
        sensitive=[(words, _drawn(one)) for words, one in _sensitive(found).items()],
        layers=_layers(found), threads=threads(found) if found.threads else "",
        facts=[(name, str(value)) for name, value in found.host.items()],
    )  # fmt: skip


def _sensitive(found: Found) -> dict[str, Sensitivity | PruningSensitivity]:
    """What was measured of the parts' sensitivity, by what to."""
    if found.sensitive is None:
        return {}
    measured = {"pruning": found.sensitive.pruned, "int8": found.sensitive.quantized}
    return {name: one for name, one in measured.items() if one is not None}


def _drawn(one: Sensitivity | PruningSensitivity) -> Markup:
    return pruning.drawing(one) if isinstance(one, PruningSensitivity) else sensitivity.drawing(one)


def _row(found: Found, point: Point) -> Row:
    if point.name == found.chosen:
        kind, status = "chosen", "chosen"
    elif point.feasible:
        kind, status = "ok", "front" if point.name in found.front else "fits"
    else:
        kind, status = ("slower", "slower") if point.slower else ("failed", "misses")
    ends = f" [{point.drop_ends[0]:.2f}, {point.drop_ends[1]:.2f}]" if point.drop_ends else ""
    return Row(
        point.name, kind, status, f"{point.latency_ms:.3f} ms", text.times(1 / point.share), f"{point.accuracy:.2f} %",
        f"{point.drop:.2f}{ends}", f"{point.megabytes:.2f} MB",
        text.NOTHING if point.memory_mb is None else f"{point.memory_mb:.0f} MB", text.wall(point.seconds),
        ", ".join(told(miss) for miss in point.misses),
    )  # fmt: skip


def _layers(found: Found) -> list[Layer]:
    if found.costs is None:
        return []
    dearest = sorted(found.costs.table.layers, key=lambda layer: -layer.ns[-1])[:_LAYERS]
    shares = {
        name: share
        for part in found.costs.parts
        for name in part.gives
        if (share := found.widths.get(part.name))
    }
    return [
        Layer(
            layer.name,
            ", ".join(
                f"{text.percent(at, 0)}: {text.duration(ns)}"
                for at, ns in zip(layer.left[::-1], layer.ns[::-1], strict=True)
            ),
            text.percent(shares[layer.name], 0) if layer.name in shares else text.NOTHING,
        )
        for layer in dearest
    ]


def drawing(found: Found) -> Markup | None:
    """Points lost against latency: all points, the front as a line, the bounds as dashed ones."""
    if not found.points:
        return None
    frame = svg.Frame(62.0, 34.0, _WIDTH - 14, 360.0)
    base = next((p.latency_ms for p in found.points if p.name == "fp32"), found.points[0].latency_ms)
    latency = {p.name: p.share * base for p in found.points}
    drops = [p.drop for p in found.points] + (
        [found.asked.max_drop] if found.asked.max_drop is not None else []
    )
    x = svg.Scale(0.0, 1.15 * max(latency.values()), frame.left, frame.right)
    pad = 0.08 * (max(drops) - min(drops)) or 0.5
    y = svg.Scale(min(drops) - pad, max(drops) + pad, frame.top, frame.bottom)
    parts = [
        frame.x_axis(
            x, [(v, f"{v:.3g}") for v in x.ticks(8)], "median latency, ms, plain file (left is faster)"
        ),
        frame.y_axis(y, [(v, f"{v:.3g}") for v in y.ticks(6)], "points lost on val (higher is better)"),
        *_limits(found, frame, x, y),
    ]
    line = [p for p in found.points if p.name in found.front]
    line.sort(key=lambda p: p.share)
    parts.append(
        svg.path([(x(latency[p.name]), y(p.drop)) for p in line], "curve s0") if len(line) > 1 else Markup()
    )
    for point in found.points:
        tone = "c1" if point.name in found.front else "c0"
        hint = svg.hint(
            f"{point.name}: {latency[point.name]:.3f} ms, {point.drop:.2f} points, {point.megabytes:.2f} MB"
        )
        at = (x(latency[point.name]), y(point.drop))
        if point.name == found.chosen:
            parts.append(svg.element("circle", cx=at[0], cy=at[1], r=9.0, class_="ring"))
        parts.append(svg.element("circle", hint, cx=at[0], cy=at[1], r=5.0, class_=f"disc {tone}"))
    parts += _names(line, latency, frame, (x, y))
    return svg.drawing(_WIDTH, 404, "points lost against latency, all points", parts)


def _limits(found: Found, frame: svg.Frame, x: svg.Scale, y: svg.Scale) -> list[Markup]:
    """The bounds that lie inside the picture."""
    drawn = []
    if (most := found.asked.max_latency_ms) is not None and most <= x.high:
        drawn.append(svg.line(x(most), frame.top, x(most), frame.bottom, "kept"))
    if found.asked.max_drop is not None:
        drawn.append(
            svg.line(frame.left, y(found.asked.max_drop), frame.right, y(found.asked.max_drop), "kept")
        )
    return drawn


def _names(
    line: Sequence[Point], latency: dict[str, float], frame: svg.Frame, scales: tuple[svg.Scale, svg.Scale]
) -> list[Markup]:
    x, y = scales
    places = [(x(latency[p.name]), y(p.drop)) for p in line]
    taken = [Box(cx - 6, cy - 6, cx + 6, cy + 6) for cx, cy in places]
    drawn = []
    for point, (cx, cy) in list(zip(line, places, strict=True))[:_NAMED]:
        words = short(point.name, 28)
        box = place((words,), (cx, cy, 6.0), taken, Box(frame.left, frame.top, frame.right, frame.bottom))
        taken.append(box)
        drawn.append(svg.label(box.left, box.top + 14, words, "name"))
    return drawn
