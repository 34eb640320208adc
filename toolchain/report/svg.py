"""Drawing primitives: scales, ticks and escaped SVG elements. Colours are classes of the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_NONE = Markup()


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] onto pixels [start, end], linearly or by logarithm (low > 0)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; values outside land outside."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-30))
        return self.start + (self.end - self.start) * (at - low) / ((high - low) or 1.0)

    def ticks(self, count: int = 6) -> list[float]:
        """Round values inside the scale, about `count` of them."""
        return self._log_ticks(count) if self.log else self._linear_ticks(count)

    def _linear_ticks(self, count: int) -> list[float]:
        step = nice_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1,)):
            found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
            if len(found) <= count:
                return found if len(found) > 1 else [self.low, self.high]
        return found


def nice_step(rough: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten that is not below `rough` (> 0)."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))


def element(name: str, content: Markup = _NONE, /, **attributes: object) -> Markup:
    """One element; `class_` and `stroke_width` become class and stroke-width, and None is left out."""
    written = _NONE
    for key, value in attributes.items():
        if value is not None:
            shown = f"{value:.1f}" if isinstance(value, float) else value
            written += Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), shown)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, content)


def label(x: float, y: float, words: str, class_: str | None = None, anchor: str = "start") -> Markup:
    """Text at a place; `anchor` is start, middle or end."""
    return element("text", Markup("{}").format(words), x=x, y=y, class_=class_, text_anchor=anchor)


def hint(words: str) -> Markup:
    """A tooltip, as the content of an element."""
    return element("title", Markup("{}").format(words))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, content: Markup = _NONE) -> Markup:
    """A line through points."""
    drawn = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", content, d=f"M{drawn}", class_=class_)


def joined(parts: Iterable[Markup]) -> Markup:
    """The parts one after another."""
    return Markup().join(parts)


def drawing(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    """A whole picture; `title` is read to those who don't see it."""
    return element(
        "svg",
        joined(parts),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=title,
        class_="chart",
        style=f"max-width:{width:.0f}px;min-width:{min(width, 820):.0f}px",
    )


@dataclass(frozen=True)
class Frame:
    """The plotting area inside a drawing, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def x_axis(self, scale: Scale, ticks: Sequence[tuple[float, str]], title: str) -> Markup:
        """Vertical grid lines, tick words below and the axis' title."""
        parts = []
        for value, words in ticks:
            at = scale(value)
            parts += [
                line(at, self.top, at, self.bottom, "grid"),
                label(at, self.bottom + 16, words, "tick", "middle"),
            ]
        parts.append(label((self.left + self.right) / 2, self.bottom + 36, title, "axis", "middle"))
        return joined(parts)

    def y_axis(self, scale: Scale, ticks: Sequence[tuple[float, str]], title: str) -> Markup:
        """Horizontal grid lines, tick words to the left and the axis' title on top."""
        parts = []
        for value, words in ticks:
            at = scale(value)
            parts += [
                line(self.left, at, self.right, at, "grid"),
                label(self.left - 8, at + 4, words, "tick", "end"),
            ]
        parts.append(label(max(4.0, self.left - 44), self.top - 12, title, "axis", "start"))
        return joined(parts)
