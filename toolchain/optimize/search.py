"""The search: tries what `strategy` proposes for as long as the budget lasts, and tells every point it finds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from toolchain.device import memory_ran_out
from toolchain.errors import HostError
from toolchain.optimize import tables
from toolchain.optimize.arms import GRID, OF_FILES, Arm, Space
from toolchain.optimize.asked import Asked
from toolchain.optimize.budget import OutOfTimeError
from toolchain.optimize.design import TOP, Design, Scheme
from toolchain.optimize.known import BY_WEIGHTS, composed, leading
from toolchain.optimize.own import is_trained
from toolchain.optimize.points import Failure, Outcome, Point, pick, points
from toolchain.optimize.sensitivity import PICTURES, Sensitive
from toolchain.optimize.strategy import propose
from toolchain.optimize.trials import UNMADE, Trials
from toolchain.optimize.widths import Costs

WAYS: dict[str, tuple[Scheme, ...]] = {
    "cpu": ("fp32", "int8", "int8-stem", "int8-narrow"), "cuda": ("fp32", "fp16"),
}  # fmt: skip
MENDING: dict[str, tuple[Scheme, ...]] = {
    "cpu": ("int8-adaptive", "int8-percentile", "int8-mixed", "int8-qat"), "cuda": (),
}  # fmt: skip
_TABLE_SHARE = 0.3  # most of the time left that the latency table may take
_PROBE_SHARE = 0.1  # and that the layers' sensitivity may, which only explains
_PROBE_START, _PROBE_ANSWERS = 5.0, 200  # seconds, and about how many networks answer its pictures
_OWN_SHARE = 0.4  # and that each of the recipe's own variants may take
_TRAININGS = 5  # that the budget shall hold, or recovery is shortened
_TRAINING_SHARE = 0.7  # of the budget that trainings may take
_SMALLEST = 24  # pixels
_TAUGHT: frozenset[Scheme] = frozenset(
    {"int8-qat"}
)  # learns from fp32, which another backbone's pictures don't fit


@dataclass
class Search:
    """The search among one backbone's designs. `history` is everything found, in order, of other backbones too;
    `told` is called after each outcome. among: how many backbones share the budget. until: when it has to make way
    for another's (time.monotonic())."""

    trials: Trials
    told: Callable[[Outcome], None]
    history: dict[Design, Outcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    among: int = 1
    until: float = math.inf
    sensitive: Sensitive | None = None
    _floats: Costs | None = None
    _tabulated: bool = False
    _prunable: bool = True

    @property
    def asked(self) -> Asked:
        """What was asked."""
        return self.trials.asked

    @property
    def whole(self) -> Design:
        """The backbone as it was tuned."""
        return self.trials.whole

    @property
    def own(self) -> dict[Design, Outcome]:
        """What was found of this backbone's, and fp32."""
        known = self.history.items()
        return {d: found for d, found in known if d == Design() or d.backbone == self.trials.backbone}

    def begin(self) -> str | None:
        """Try the backbone as it is, quantized in the usual ways, and the recipe's own variants that need no training;
        returns why there is no time for more, if so.

        Raises OutOfTimeError when the budget ends within.
        """
        self._try(self.whole)
        if not self.promising:
            return None
        self._assume()
        quick = tuple(name for name, variant in self.trials.own.items() if not is_trained(variant))
        return self._spend(replace(self.space(), mending=(), own=quick))

    @property
    def left(self) -> float:
        """Seconds until the budget or its turn ends."""
        return min(self.trials.deadline.left, self.until - time.monotonic())

    @property
    def promising(self) -> bool:
        """Whether to make it smaller: `tuned` always, another backbone if it keeps the accuracy as it is."""
        found = self.history.get(self.whole)
        return not self.trials.backbone or (isinstance(found, Point) and found.accurate)

    def shrink(self) -> str | None:
        """Mend what quantizing lost, and make it smaller; returns why there is no time for more, if so.

        Raises OutOfTimeError as above.
        """
        if not self.promising:
            return None
        stopped = self._spend(self.space())
        if stopped is not None:
            return stopped
        if not self._tabulated:
            if self.trials.template.trainable:
                self.tabulate()
            self._tabulated = True
            self.probe()
        narrowing = self.trials.narrowing
        space = self.space(self.arms())
        if narrowing is not None:
            space = replace(space, taught=narrowing.epochs, narrows_first=self.trials.narrows_first)
        return self._spend(space)

    def best(self) -> Point | None:
        """The best point of this backbone."""
        return pick(
            (p for p in points(self.own) if p.design.backbone == self.trials.backbone), self.asked.goal
        )

    def _assume(self) -> None:
        """An epoch's seconds from the latency, where nothing was trained here: forward and backward, with slack."""
        base = self.history[self.whole]
        latency = base.latency_ms if isinstance(base, Point) else 10.0
        self.trials.durations.assume(5.0 * len(self.trials.data.train) * latency / 1e3)

    def _spend(self, space: Space) -> str | None:
        """Try what is proposed; returns why there is no time for more, or None when nothing more is proposed."""
        while True:
            waiting = list(propose(self.own, space, self.predict))
            if not waiting:
                return None
            costs = {design: self.trials.seconds(design) for design in waiting}
            left = self.left
            design = next((design for design in waiting if costs[design] <= left), None)
            if design is None:
                first = waiting[0]
                return (
                    f"the time that is left ({max(left, 0):.0f} s) is too short for what would come next "
                    f"({first.name}: about {costs[first]:.0f} s)"
                )
            self._try(design)

    def _try(self, design: Design) -> None:
        if design.own:
            self.history[design] = self._own(design)
        else:
            predicted = self.predict(design) if Design() in self.history else None
            self.history[design] = self.trials.trial(design, predicted)
        self.told(self.history[design])

    def _own(self, design: Design) -> Outcome:
        """One of the recipe's own variants, in a part of the time that is left: how long it takes, nothing foretells."""
        limit = _OWN_SHARE * self.left
        try:
            with self.trials.deadline.within(limit):
                return self.trials.trial(design)
        except OutOfTimeError:
            return Failure(design, f"not done in {limit:.0f} s, as much of the time left as it may take")

    def tabulate(self) -> None:
        """Measure the latency table, if there is time and the network can be pruned; and one in float, to predict by."""
        self._tabulated = True
        scheme = leading(self.own, self.whole, self.asked.goal)
        try:
            costs = self._measure(scheme)
        except UNMADE as error:
            self._prunable = False
            self._note(f"no pruning: {error}")
            return
        if costs is None:
            return
        if costs.covers:
            self.trials.costs = costs
            useful = scheme != "fp32" and self.asked.goal not in OF_FILES
            if useful and tables.seconds(self.trials, "fp32") <= _TABLE_SHARE * self.left:
                self._floats = tables.measure(self.trials, "fp32")
        else:
            self._note("the latency table knows too few of the layers: every layer is pruned alike")

    def probe(self) -> None:
        """Measure what the parts of the recipe's own network lose to pruning and int8, for the report, if there is time."""
        base = self.history.get(Design())
        if self.trials.backbone or not isinstance(base, Point):
            return
        limit = _PROBE_SHARE * self.left
        if _PROBE_START + PICTURES * _PROBE_ANSWERS * base.latency_ms / 1e3 > limit:
            return
        integers = isinstance(self.history.get(Design(scheme="int8")), Point)
        integers = integers and not self.trials.template.quantize.float_products
        try:
            with self.trials.deadline.within(limit):
                self.sensitive = self.trials.sensitivity(
                    pruning=self._prunable and self.trials.template.trainable, int8=integers
                )
        except (*UNMADE, OutOfTimeError, HostError, MemoryError, RuntimeError) as error:
            if not (isinstance(error, (*UNMADE, OutOfTimeError)) or memory_ran_out(error)):
                raise
            self._note(f"the sensitivity of single parts was not measured: {error}")

    def _measure(self, scheme: Scheme) -> Costs | None:
        """The table of networks quantized so, or in float where they cannot be; None, with a note, without the time.

        Raises what pruning refuses.
        """
        if tables.seconds(self.trials, scheme) > _TABLE_SHARE * self.left:
            self._note("no time for a latency table of the layers: every layer is pruned alike")
            return None
        try:
            return tables.measure(self.trials, scheme)
        except UNMADE as error:
            if scheme == "fp32":
                raise
            found = self._measure("fp32")
            if found is not None:
                self._note(
                    f"the latency table is of float layers: {scheme} cannot be made of pruned ones ({error})"
                )
            return found

    def _note(self, words: str) -> None:
        self.notes.append(f"{self.trials.backbone}: {words}" if self.trials.backbone else words)

    def space(self, arms: Sequence[Arm] = ()) -> Space:
        """What may be tried beside narrowing."""
        provider, backbone = self.asked.provider, self.trials.backbone
        mending = tuple(way for way in MENDING[provider] if not backbone or way not in _TAUGHT)
        rivals = tuple(
            point
            for design, point in self.history.items()
            if design not in self.own and isinstance(point, Point)
        )
        own = tuple(self.trials.own)
        return Space(self.asked, WAYS[provider], mending, tuple(arms), self.rungs(), backbone, rivals, own)

    def arms(self) -> list[Arm]:
        """Ways to make the network smaller, in the order in which they are tried."""
        sides = sizes_below(self.trials.recipe_side)
        top = min(TOP, math.floor(self.trials.template.most / GRID + 1e-9) * GRID)
        uniform = Arm("uniform", backbone=self.trials.backbone, top=round(top, 2))
        first = replace(uniform, shape="table") if self.trials.costs else uniform
        relu = [replace(first, relu=True)] if self.trials.replaceable else []
        if not self.trials.template.trainable:
            return []
        if not self._prunable:
            whole = (*relu, *(replace(uniform, size=side) for side in sides))
            return [replace(arm, top=0.0) for arm in whole]
        sizes = [replace(first, size=side) for side in sides]
        taylor = (
            []
            if self.trials.template.prune.importance == "taylor"
            else [replace(uniform, importance="taylor")]
        )
        return [*relu, *dict.fromkeys([first, *sizes, uniform]), *taylor]

    def rungs(self) -> tuple[int, ...]:
        """Epochs of recovery, the shortest first: a quarter of the recipe's, or so short that some trainings fit the budget,
        up to twice the recipe's where that fits. What a short one reaches needs no longer one.

        A function of the whole budget (Asked.sized_by) and of recorded times, so that it is the same after a restart.
        """
        full = self.trials.template.recover.epochs
        affordable = (
            _TRAINING_SHARE
            * (self.asked.sized_by or self.asked.budget)
            / self.among
            / (_TRAININGS * max(self.trials.durations.tuning, 1e-9))
        )
        divisor = next((d for d in (2, 4) if full / d <= affordable), 8)
        divisors = {2: (4, 1, 0.5), 4: (4, 1), 8: (8, 2)}[divisor]
        return tuple(sorted({max(1, round(full / d)) for d in divisors}))

    def predict(self, design: Design) -> float:
        """The latency in ms that a design is predicted to have: fp32's, by shares that were measured apart."""
        base = self.history[Design()]
        whole = base.latency_ms if isinstance(base, Point) else 1.0
        return whole * self._share(design) * self._correction(design)

    def _share(self, design: Design) -> float:
        if design.narrowed:
            return self._in_integers(design.network) * (1 - self.trials.reach * design.narrow)
        alike, plain = replace(design.whole, scheme=design.scheme), replace(self.whole, scheme=design.scheme)
        way = self._measured(alike) or self._measured(plain) or self._measured(self.whole) or 1.0
        side = 1.0
        if design.size:
            side = self._side(replace(design.whole, size=design.size), design.scheme)
        width = 1.0
        if design.ratio:
            width = self._width(design)
        return way * side * width

    def _in_integers(self, network: Design) -> float:
        """The least share of fp32's latency that a network has in integers and not narrowed, as measured or predicted."""
        known = (p for p in composed(self.own) if p.design.network == network)
        shares = [p.share for p in known if p.design.scheme not in {"fp32", "fp16", *BY_WEIGHTS}]
        return min(shares, default=None) or self._share(replace(network, scheme="int8"))

    def _side(self, network: Design, scheme: Scheme) -> float:
        """The share of a whole network's latency that is left at another input size: in this way to quantize, in another, or
        as it usually is."""
        ways = [scheme, *(p.design.scheme for p in points(self.own) if p.design.network == network)]
        for way in ways:
            sized = self._measured(replace(network, scheme=way))
            whole = self._measured(replace(network, size=None, scheme=way))
            if sized and whole:
                return sized / whole
        side = self.trials.recipe_side
        return float(((network.size or side) / side) ** 1.6)

    def _width(self, design: Design) -> float:
        costs = self.trials.costs
        if costs is None:
            return float((1 - design.ratio) ** 1.5)
        if design.scheme == "fp32" and self._floats is not None:
            if design.shape == "uniform":
                return self._floats.uniform(design.ratio)
            return self._floats.given(self.trials.widths(design))
        return costs.target(design.ratio) if design.shape == "table" else costs.uniform(design.ratio)

    def _correction(self, design: Design) -> float:
        """How far off the prediction was for the nearest design that was made smaller and quantized in the same way."""

        def apart(point: Point) -> tuple[bool, float, bool, str]:
            other = point.design
            narrowed_otherwise = design.narrowed and other.network != design.network
            distance = abs(other.ratio - design.ratio) + abs(other.narrow - design.narrow)
            return narrowed_otherwise, distance, other.size != design.size, point.name

        near = [p for p in points(self.own) if _is_smaller(p.design) and _alike(p.design, design)]
        if not near or not _is_smaller(design):
            return 1.0
        best = min(near, key=apart)
        return best.share / self._share(best.design)

    def _measured(self, design: Design) -> float | None:
        found = self.history.get(design)
        return found.share if isinstance(found, Point) else None


def _is_smaller(design: Design) -> bool:
    return design.ratio > 0 or design.narrowed


def _alike(one: Design, other: Design) -> bool:
    """Whether an error of the one's prediction tells something of the other's."""
    return (one.scheme, one.relu, one.narrowed) == (other.scheme, other.relu, other.narrowed)


def sizes_below(side: int) -> list[int]:
    """Smaller inputs to try: about four and three fifths of the side, in steps that networks' strides divide."""
    step = 32 if side >= 96 else 8
    found = {round(share * side / step) * step for share in (0.8, 0.6)}
    return sorted((size for size in found if _SMALLEST <= size < side), reverse=True)
