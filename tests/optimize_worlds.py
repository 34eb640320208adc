"""Made-up worlds where the truth about every design is known, for tests of what a search tries next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from toolchain.optimize.arms import Arm, Space
from toolchain.optimize.asked import Asked
from toolchain.optimize.bisection import next_ratio
from toolchain.optimize.design import Design
from toolchain.optimize.points import History, Miss, Outcome, Point, pick, points
from toolchain.optimize.strategy import propose

WAYS = {"fp32": 1.0, "int8": 0.5, "int8-stem": 0.55, "int8-percentile": 0.5, "int8-mixed": 0.6}
ARMS = (Arm("table"), Arm("uniform"), Arm("table", size=96))


@dataclass
class World:
    """Latency falls with the ratio; accuracy breaks beyond an edge that grows with recovery and differs by arm."""

    asked: Asked
    edge: Callable[[Design], float]
    way_loss: dict[str, float] = field(default_factory=dict)
    arms: tuple[Arm, ...] = ARMS
    history: dict[Design, Outcome] = field(default_factory=dict)

    def latency(self, design: Design) -> float:
        size = 0.6 if design.size else 1.0
        return WAYS[design.scheme] * size * (1 - design.ratio) ** 1.5

    def measure(self, design: Design) -> Point:
        over = max(0.0, design.ratio - self.edge(design)) if design.ratio or design.size else 0.0
        drop = 40 * over + self.way_loss.get(design.scheme, 0.0)
        latency, misses = self.latency(design), []
        if self.asked.max_drop is not None and drop > self.asked.max_drop:
            misses.append(Miss("max_drop", self.asked.max_drop, drop, "points"))
        if self.asked.max_latency_ms is not None and latency > self.asked.max_latency_ms:
            misses.append(Miss("max_latency_ms", self.asked.max_latency_ms, latency, "ms"))
        return Point(
            design, latency, latency, 99 - drop, drop, None, None, 5 * latency,
            plain_drop=40 * over if design.trained else None, misses=tuple(misses),
        )  # fmt: skip

    def space(self) -> Space:
        schemes, mending = ("fp32", "int8", "int8-stem"), ("int8-percentile", "int8-mixed")
        return Space(self.asked, schemes, mending, self.arms, (4, 8, 16))  # type: ignore[arg-type]

    def predict(self, design: Design) -> float:
        return self.latency(design)

    def run(self, most: int = 60) -> list[Design]:
        tried = []
        while len(tried) < most:
            design = next(iter(propose(self.history, self.space(), self.predict)), None)
            if design is None:
                return tried
            assert design not in self.history
            self.history[design] = self.measure(design)
            tried.append(design)
        raise AssertionError("the search does not end")


def grows(design: Design) -> float:
    """Where accuracy breaks: 0.5 after 4 epochs, 0.6 after 8, 0.65 after 16; less for smaller inputs."""
    edge = {0: 0.0, 4: 0.5, 8: 0.6, 16: 0.65}[design.epochs]
    return edge - (0.4 if design.size else 0.0) + (0.03 if design.shape == "table" else 0.0)


class Narrowed(World):
    """`narrow` takes what it says; a network holds until `bears` of it are gone, at a smaller input a tenth less."""

    bears = 0.7

    def space(self) -> Space:
        return replace(super().space(), taught=6)

    def latency(self, design: Design) -> float:
        if design.narrowed:
            return (1 - design.narrow) * super().latency(replace(design, narrow=0.0, taught=0, scheme="int8"))
        return super().latency(design)

    def measure(self, design: Design) -> Point:
        if not design.narrowed:
            return super().measure(design)
        below = super().measure(replace(design, narrow=0.0, taught=0, scheme="int8"))
        over = max(0.0, design.narrow - self.bears + (0.1 if design.size else 0.0))
        drop, latency = below.drop + 40 * over, self.latency(design)
        misses = (Miss("max_drop", 1.0, drop, "points"),) if drop > 1 else ()
        bound = self.asked.max_latency_ms
        misses += (Miss("max_latency_ms", bound, latency, "ms"),) if bound and latency > bound else ()
        return replace(below, design=design, latency_ms=latency, share=latency, drop=drop, misses=misses)


def never(design: Design) -> float:
    """Nothing pruned keeps the accuracy, and no smaller input."""
    return -0.2


def found_best(world: World) -> str:
    best = pick(points(world.history), "latency")
    assert best is not None
    return best.name


def judged(*outcomes: Outcome) -> History:
    world = World(Asked(max_drop=1.0), grows)
    return {Design(): world.measure(Design())} | {outcome.design: outcome for outcome in outcomes}


def ratio(history: History, asked: Asked, level: int = 0, *, patient: bool = False) -> float | None:
    world = World(asked, grows, arms=(Arm("uniform"),))
    return next_ratio(history, world.space(), world.predict, Arm("uniform"), level, patient=patient)
