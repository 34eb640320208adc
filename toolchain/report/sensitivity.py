"""What int8 costs, part by part: from a step's measurements to a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from toolchain.record import Measurement
from toolchain.report import svg, text
from toolchain.report.labels import short
from toolchain.report.parts import SensitivePart, Sensitivity

if TYPE_CHECKING:  # what a report is made from needs recipes and torch; drawing one does not
    from toolchain.report.findings import Findings

SHOWN = 24
_WIDTH, _ROW, _LEFT = 1000.0, 22.0, 210.0


def sensitivities(found: Findings) -> Iterator[Sensitivity]:
    """One for each file whose own step measured it."""
    for name, artifact in found.files.items():
        section = sensitivity(name, artifact.record.measurements)
        if section is not None:
            yield section


def sensitivity(variant: str, measured: Sequence[Measurement]) -> Sensitivity | None:
    """From the measurements of `fall_back`; None when there are none."""
    gains, agreements, prices = (_by_layer(measured, name) for name in ("sensitivity", "agreement", "price"))
    if not gains:
        return None
    parts = tuple(
        SensitivePart(name=name, gain=gain, agreement=agreements.get(name), price=prices.get(name))
        for name, gain in gains.items()
    )
    return Sensitivity(variant=variant, agreement=agreements[""], parts=parts)


def _by_layer(measured: Sequence[Measurement], name: str) -> dict[str, float]:
    """A measurement's values by layer; other steps measure under the same name without one."""
    return {str(m.where["layer"]): m.value for m in measured if m.name == name and "layer" in m.where}


def drawing(found: Sensitivity) -> Markup:
    """A bar a part; those given back in colour, with the agreement reached and the price beside them."""
    shown = found.parts[:SHOWN]
    frame = svg.Frame(_LEFT, 12.0, _WIDTH - 260, 12.0 + _ROW * len(shown))
    low, high = min(0.0, *(p.gain for p in shown)), max(0.1, *(p.gain for p in shown))
    x = svg.Scale(low, high, frame.left, frame.right)
    ticks = [(v, f"{v:.3g}") for v in x.ticks(8)]
    parts = [
        frame.x_axis(x, ticks, "gained with this part alone in float, dB of the logits' signal over noise")
    ]
    for number, part in enumerate(shown):
        middle = frame.top + _ROW * (number + 0.5)
        tone = "s0" if part.agreement is not None else "s7"
        parts.append(svg.label(_LEFT - 10, middle + 4, short(part.name, 30), "tick", "end"))
        start, end = sorted((x(0.0), x(part.gain)))
        parts.append(
            svg.path([(start, middle), (end, middle)], f"curve {tone}", svg.hint(f"{part.gain:.2f} dB"))
        )
        parts.append(svg.element("circle", cx=x(part.gain), cy=middle, r=4.0, class_=f"dot {tone}"))
        if part.agreement is not None:
            parts.append(svg.label(frame.right + 12, middle + 4, _words(part), "tick"))
    return svg.drawing(_WIDTH, frame.bottom + 46, f"sensitivity of {found.variant} to int8", parts)


def _words(part: SensitivePart) -> str:
    price = "" if part.price is None else f", latency × {part.price:.2f}"
    return f"in float: {text.percent(part.agreement or 0.0)} agree{price}"
