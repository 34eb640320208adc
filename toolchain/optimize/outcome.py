"""What a search ended with, as plain values: what the page and the JSON are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolchain.optimize.asked import Asked
from toolchain.optimize.points import Outcome, Point
from toolchain.optimize.sensitivity import Sensitive
from toolchain.optimize.widths import Costs
from toolchain.record import JSON


@dataclass(frozen=True)
class Tested:
    """The chosen file on test, in per cent; drop against fp32 in points of the recipe's metric."""

    n: int
    top1: float
    balanced: float
    drop: float
    drop_ends: tuple[float, float] | None


@dataclass(frozen=True)
class Found:
    """A search, at its end or on the way.

    front, closest: names of points. would_do: what would have to give, when nothing is chosen. widths: shares pruned
    by layer of the chosen design. costs: the latency table, where one was measured. threads: the chosen file's median
    ms by how many threads it has, where several were to be had. sensitive: what the recipe's own network loses part by
    part, where there was time to measure it. seconds: of this start.
    """

    name: str
    metric: str
    asked: Asked
    outcomes: tuple[Outcome, ...]
    front: tuple[str, ...]
    chosen: str | None
    reasons: tuple[str, ...]
    closest: tuple[str, ...]
    would_do: tuple[str, ...]
    stopped: str
    notes: tuple[str, ...]
    seconds: float
    tested: Tested | None
    host: Mapping[str, JSON]
    widths: Mapping[str, float]
    costs: Costs | None
    threads: Mapping[int, float]
    sensitive: Sensitive | None

    @property
    def points(self) -> tuple[Point, ...]:
        """The points measured, in the order in which they were found."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Point))

    def point(self, name: str | None) -> Point | None:
        """The point of a name."""
        return next((point for point in self.points if point.name == name), None)
