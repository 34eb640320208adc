"""A search as JSON, as one self-contained page, and in the few lines that a terminal gets."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from toolchain.optimize import chart
from toolchain.optimize.outcome import Found
from toolchain.optimize.points import Failure, Point, Probe, told
from toolchain.optimize.session import fastest
from toolchain.record import JSON
from toolchain.report import pruning, sensitivity, style, text
from toolchain.report.parts import PruningSensitivity, Sensitivity

SCHEMA_VERSION = 1
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
        "optimize.html.j2", found=found, headline=headline(found), bounds=_bounds(found), drawing=chart.drawing(found),
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
