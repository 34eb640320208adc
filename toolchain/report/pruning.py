"""What pruning costs, part by part: from a step's measurements to a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from toolchain.record import Measurement
from toolchain.report import svg, text
from toolchain.report.labels import short
from toolchain.report.parts import PrunedPart, PruningSensitivity

if TYPE_CHECKING:  # what a report is made from needs recipes and torch; drawing one does not
    from toolchain.report.findings import Findings

SHOWN = 32
TONES = ("c1", "c2", "c3")
_SAME = 60.0  # dB: what is drawn no further
_WIDTH, _ROW, _LEFT, _TOP = 1000.0, 20.0, 210.0, 30.0


def prunings(found: Findings) -> Iterator[PruningSensitivity]:
    """One for each step that measured it."""
    for name, artifact in found.artifacts.items():
        section = pruning(name.partition("/")[0], artifact.record.measurements)
        if section is not None:
            yield section


def pruning(artifact: str, measured: Sequence[Measurement]) -> PruningSensitivity | None:
    """From the measurements of `prune` with `probe`; None when there are none."""
    parts: dict[str, dict[float, list[float]]] = {}
    for one in measured:
        if one.name in ("sqnr_pruned", "agreement_pruned"):
            shares = parts.setdefault(str(one.where["layer"]), {})
            shares.setdefault(float(one.where["share"]), []).append(one.value)
    if not parts:
        return None
    found = [
        PrunedPart(
            name=name, shares=tuple(shares), sqnr=tuple(pair[0] for pair in shares.values()),
            agreement=tuple(pair[1] for pair in shares.values()),
        )
        for name, shares in parts.items()
    ]  # fmt: skip
    return PruningSensitivity(artifact=artifact, parts=tuple(sorted(found, key=_worst)))


def _worst(part: PrunedPart) -> tuple[float, str]:
    return part.sqnr[len(part.sqnr) // 2], part.name


def drawing(found: PruningSensitivity) -> Markup:
    """A line a part, with a dot for each share of its channels; the further left, the more the answers change."""
    shown = found.parts[:SHOWN]
    frame = svg.Frame(_LEFT, _TOP, _WIDTH - 90, _TOP + _ROW * len(shown))
    values = [min(value, _SAME) for part in shown for value in part.sqnr]
    x = svg.Scale(min(0.0, *values), max(10.0, *values), frame.left, frame.right)
    clipped = f"; {_SAME:g} and more: nothing lost" if max(values) >= _SAME else ""
    title = f"signal over noise of the logits with this part alone pruned, dB (less is worse{clipped})"
    drawn = [_legend(shown), frame.x_axis(x, [(v, f"{v:.3g}") for v in x.ticks(8)], title)]
    for number, part in enumerate(shown):
        middle = frame.top + _ROW * (number + 0.5)
        drawn.append(svg.label(_LEFT - 10, middle + 4, short(part.name, 30), "tick", "end"))
        at = [x(min(value, _SAME)) for value in part.sqnr]
        drawn.append(svg.path([(min(at), middle), (max(at), middle)], "curve s7"))
        for tone, share, sqnr, agreement, cx in zip(
            TONES, part.shares, part.sqnr, part.agreement, at, strict=False
        ):
            words = f"{part.name}: {text.percent(share, 0)} pruned, {sqnr:.1f} dB, {text.percent(agreement)} agree"
            drawn.append(
                svg.element("circle", svg.hint(words), cx=cx, cy=middle, r=4.0, class_=f"disc {tone}")
            )
        drawn.append(svg.label(frame.right + 12, middle + 4, text.percent(part.agreement[-1]), "tick"))
    return svg.drawing(_WIDTH, frame.bottom + 46, f"sensitivity of {found.artifact} to pruning", drawn)


def _legend(shown: Sequence[PrunedPart]) -> Markup:
    """What the dots stand for, and the column of figures."""
    parts = []
    for number, (tone, share) in enumerate(zip(TONES, shown[0].shares, strict=False)):
        at = _LEFT + 110.0 * number
        parts.append(svg.element("circle", cx=at + 5, cy=12.0, r=4.0, class_=f"disc {tone}"))
        parts.append(svg.label(at + 15, 16.0, f"{text.percent(share, 0)} pruned", "tick"))
    most = text.percent(shown[0].shares[-1], 0)
    parts.append(svg.label(_WIDTH, 16.0, f"agree at {most}", "tick", "end"))
    return svg.joined(parts)
