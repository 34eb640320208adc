"""Where words go in a drawing, so that they do not lie on each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LETTER = 7.0  # pixels a letter at the chart's text size, on average
_HEIGHT = 32.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """Square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)


def place(words: Sequence[str], disc: tuple[float, float, float], taken: Sequence[Box], frame: Box) -> Box:
    """The box beside a disc (x, y, radius) that hides least of what is taken and stays in the frame."""
    width = _LETTER * max(map(len, words))

    def cost(box: Box) -> float:
        outside = box.area - box.overlap(frame)
        return 10 * outside + sum(box.overlap(other) for other in taken)

    return min(_candidates(disc, width), key=cost)


def _candidates(disc: tuple[float, float, float], width: float) -> Iterator[Box]:
    """Right, left, above, below, then further away."""
    x, y, radius = disc
    for away in (6.0, 22.0, 44.0):
        middle = y - _HEIGHT / 2
        reach = radius + away
        for left, top in (
            (x + reach, middle),
            (x - reach - width, middle),
            (x - width / 2, y - reach - _HEIGHT),
            (x - width / 2, y + reach),
            (x + reach, y - reach - _HEIGHT / 2),
            (x + reach, y + reach - _HEIGHT / 2),
            (x - reach - width, y - reach - _HEIGHT / 2),
            (x - reach - width, y + reach - _HEIGHT / 2),
        ):
            yield Box(left, top, left + width, top + _HEIGHT)


def short(words: str, letters: int) -> str:
    """At most so many letters, the middle left out: names differ at their ends."""
    if len(words) <= letters:
        return words
    head = (letters - 1) // 2
    return f"{words[:head]}…{words[-(letters - 1 - head) :]}"
