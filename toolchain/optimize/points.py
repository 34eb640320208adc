"""What a search has found, and what follows from it: the front, the choice, what would have to give. All pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from toolchain.optimize.asked import Goal
from toolchain.optimize.design import Design
from toolchain.stats import Interval

TIE = 1.05  # latencies, sizes and memories within 5 % count as equal, so that noise does not choose
POINTS_TIE = 0.25  # so do accuracies within a quarter of a point
_TENTH = 10.0  # a tenth of a latency, size or memory too much weighs as one point of accuracy
RESOURCES = frozenset({"max_latency_ms", "max_megabytes", "max_memory_mb"})
OPTIONS: Mapping[str, str] = {
    "max_latency_ms": "--max-latency", "max_megabytes": "--max-size", "max_memory_mb": "--max-memory",
    "max_drop": "--max-drop",
}  # fmt: skip
SHORT = {"ms": "ms", "MB": "MB"}


@dataclass(frozen=True)
class Miss:
    """A bound that a point does not keep. `unit` is that of bound and value."""

    name: str
    bound: float
    value: float
    unit: str

    @property
    def weight(self) -> float:
        """How far off, so that misses of different kinds compare: in points of accuracy, or tenths of a bound."""
        off = abs(self.value - self.bound)
        return _TENTH * off / max(abs(self.bound), 1e-12) if self.name in RESOURCES else off


@dataclass(frozen=True)
class Point:
    """A candidate as measured on val.

    latency_ms: its own median; share: of fp32's latency, paired (what latencies are compared by, since the machine
    is not equally fast at all times). accuracy in per cent, drop in points of the recipe's metric against fp32.
    plain_drop: what the network in float loses, where its training told. slower: not shown to be faster than fp32.
    seconds: of the work in it, done now or before.
    """

    design: Design
    latency_ms: float
    share: float
    accuracy: float
    drop: float
    speedup: Interval | None
    drop_ends: tuple[float, float] | None
    megabytes: float
    memory_mb: float | None = None
    plain_drop: float | None = None
    misses: tuple[Miss, ...] = ()
    slower: bool = False
    seconds: float = 0.0
    key: str = ""

    @property
    def name(self) -> str:
        """The variant's name."""
        return "fp32" if self.design == Design() else self.design.name

    @property
    def feasible(self) -> bool:
        """Whether every bound and gate holds, and it is faster than fp32 (or fp32 itself)."""
        return not self.misses and not self.slower

    @property
    def accurate(self) -> bool:
        """Whether every bound but those on latency, size and memory holds."""
        return all(miss.name in RESOURCES for miss in self.misses)

    @property
    def small(self) -> bool:
        """Whether the bounds on latency, size and memory hold."""
        return not any(miss.name in RESOURCES for miss in self.misses)

    @property
    def off(self) -> float:
        """How far it is from keeping every bound, see Miss.weight."""
        return sum(miss.weight for miss in self.misses)

    @property
    def too_wrong(self) -> float:
        """The part of `off` that is not about latency, size or memory: mostly points of accuracy."""
        return sum(miss.weight for miss in self.misses if miss.name not in RESOURCES)

    @property
    def worst(self) -> float:
        """The greatest single part of `too_wrong`: a loss of accuracy misses several bounds at once."""
        return max((miss.weight for miss in self.misses if miss.name not in RESOURCES), default=0.0)

    def value(self, goal: Goal) -> float:
        """What the goal makes least."""
        found = {
            "latency": self.share,
            "accuracy": self.drop,
            "size": self.megabytes,
            "memory": self.memory_mb or 0.0,
        }
        return found[goal]


@dataclass(frozen=True)
class Probe:
    """A design whose file was timed before its network was trained, and found too slow to be trained."""

    design: Design
    latency_ms: float


@dataclass(frozen=True)
class Failure:
    """A design that could not be made, and why; too_small: where more of the network is left, it can."""

    design: Design
    why: str
    too_small: bool = False


Outcome = Point | Probe | Failure
History = Mapping[Design, Outcome]


def points(history: History) -> list[Point]:
    """The points, in the order in which they were found."""
    return [found for found in history.values() if isinstance(found, Point)]


def front(found: Iterable[Point]) -> list[Point]:
    """The points that no other beats in latency, accuracy and size at once, the fastest first.

    Files slower than fp32 are never on it; equals: the first found stays.
    """
    kept: list[Point] = []
    for point in (p for p in found if not p.slower):
        if any(_beats(other, point) for other in kept):
            continue
        kept = [other for other in kept if not _beats(point, other)] + [point]
    return sorted(kept, key=lambda p: p.share)


def _beats(one: Point, other: Point) -> bool:
    """Sizes within 2 % are the same."""
    mine, its = (one.share, one.drop, one.megabytes), (other.share, other.drop, 1.02 * other.megabytes)
    return all(a <= b for a, b in zip(mine, its, strict=True))


def pick(found: Iterable[Point], goal: Goal) -> Point | None:
    """The feasible point that is best for the goal; among near equals the more accurate, then smaller, then by name.

    With goal "accuracy", the fastest among near equals.
    """
    fit = [point for point in found if point.feasible]
    if not fit:
        return None
    least = min(point.value(goal) for point in fit)
    if goal == "accuracy":
        near = [p for p in fit if p.drop <= least + POINTS_TIE]
        return min(near, key=lambda p: (p.share, p.megabytes, p.name))
    near = [p for p in fit if p.value(goal) <= TIE * least]
    return min(near, key=lambda p: (p.drop, p.megabytes, p.name))


def closest(found: Iterable[Point], count: int = 3) -> list[Point]:
    """The points that miss the bounds by least; those not faster than fp32 are the last resort."""
    ordered = sorted(found, key=lambda p: (p.slower, p.off, p.name))
    return ordered[:count]


def would_do(found: Sequence[Point]) -> list[str]:
    """What would have to give, in sentences: for each bound, the least that makes a known point fit on its own."""
    said = []
    open_ = [point for point in found if point.misses and not point.slower]
    for kinds in dict.fromkeys(frozenset(map(_kind, point.misses)) for point in open_):
        alike = [point for point in open_ if frozenset(map(_kind, point.misses)) == kinds]
        best = min(alike, key=lambda p: (p.off, p.name))
        said.append((len(kinds), best.off, best))
    singles = [one for one in said if one[0] == 1] or said
    return [
        f"{' and '.join(map(relaxed, _each(best)))} would do ({best.name})"
        for _, _, best in sorted(singles, key=lambda one: one[1])
    ]


def _kind(miss: Miss) -> str:
    return "max_drop" if miss.name.startswith("max_drop") else miss.name


def _each(point: Point) -> list[Miss]:
    """The misses, the two ends of a drop told as they are."""
    return sorted(point.misses, key=lambda miss: miss.name)


def relaxed(miss: Miss) -> str:
    """The bound that would let it pass, as one would write it."""
    at_most = miss.value > miss.bound
    value = f"{_ceiling(miss.value):g}" if at_most else f"{floor(100 * miss.value) / 100:.2f}"
    if miss.name in OPTIONS:
        return f"{OPTIONS[miss.name]} {value}{SHORT.get(miss.unit, '')}"
    gate, _, label = miss.name.partition(".")
    if label:  # the recipe may give one figure for all classes, which has no place for one of them
        return f"gates.{gate} of {value} for {label}"
    return f"--set gates.{gate}={value}"


def _ceiling(value: float) -> float:
    """Three significant digits, rounded up."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (floor(log10(value)) - 2)
    return round(ceil(value / step - 1e-9) * step, 9)


def reasons(chosen: Point, found: Sequence[Point], goal: Goal) -> list[str]:
    """Why this point and not another, in sentences."""
    fit = [point for point in found if point.feasible]
    words = {
        "latency": "the fastest",
        "accuracy": "the most accurate",
        "size": "the smallest",
        "memory": "the leanest",
    }
    others = [point for point in fit if point != chosen]
    said = [f"{chosen.name} is {words[goal]} of {len(fit)} that keep every bound, of {len(found)} measured"]
    better = [p for p in others if p.value(goal) < chosen.value(goal)]
    if better:
        near = min(better, key=lambda p: (p.value(goal), p.name))
        said.append(
            f"{near.name} differs too little to tell, and loses {near.drop:.2f} points against {chosen.drop:.2f}"
        )
    missed = [p for p in found if p.misses and not p.slower and p.value(goal) < chosen.value(goal)]
    for point in sorted(missed, key=lambda p: p.value(goal))[:3]:
        said.append(
            f"{point.name} would be better, but misses {', '.join(told(miss) for miss in point.misses)}"
        )
    slow = [point.name for point in found if point.slower]
    if slow:
        said.append(f"not shown to be faster than fp32, so never chosen: {', '.join(slow)}")
    return said


def told(miss: Miss) -> str:
    """A miss in words: `max_drop (1.34 points, bound 1)`."""
    return f"{miss.name} ({miss.value:.3g} {miss.unit}, bound {miss.bound:g})"
