"""What to try next, from what was found: a pure function, so that a search that was killed finds its way again.

1. Ways to quantize the network as it is: seconds each; then the recipe's own variants that are made otherwise.
2. For every arm (how channels are chosen, input size, importance), pruning by bisection: towards the greatest share
   that keeps the accuracy, or, with goal "accuracy", the smallest that keeps the other bounds. Narrowing likewise, of the
   network as it is, and at smaller inputs.
3. Longer recovery where a shorter one ended, and, for each network that was trained, the other ways to quantize it. The
   fastest is tried in float as well: what is fastest on the whole network may be slower on a small one.

A design is proposed only if the latency that is predicted for it keeps its bound and beats what was found so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from toolchain.optimize.asked import Asked, Goal
from toolchain.optimize.design import TOP, Design, Scheme, Shape
from toolchain.optimize.points import Failure, History, Outcome, Point, Probe, pick, points

GRID = 0.05  # ratios are multiples of it
START, NARROWED = 0.5, 0.75  # where pruning and narrowing begin
PROMISE = 0.97  # of the best latency so far: what a design must be predicted to reach, or it is not tried
SIBLING = 1.25  # a way to quantize is tried on a pruned network when on the whole one it took so much of the best at most
TRAINED: Scheme = "int8-qat"  # how narrowed networks are quantized
_LITTLE = 0.2  # a ratio that may round to nothing in every layer
_ROUNDING = 0.1  # points that rounding to integers must have cost, or another way of it mends nothing
_HOPELESS = 15.0  # how wrong (Point.too_wrong) a short recovery may end for a longer one to be tried
OF_FILES: frozenset[Goal] = frozenset({"size", "memory"})  # goals that integers serve at any latency
_BY_WEIGHTS: frozenset[Scheme] = frozenset({"int8-narrow"})  # how fast they are is known after recovery only
_LONGER = 2 * GRID  # how much more than what a short recovery failed at is worth a longer one
_NEAR = 3.0  # points of accuracy within which another way to quantize may mend a miss

Predict = Callable[[Design], float]


@dataclass(frozen=True)
class Arm:
    """One way to make a backbone smaller; bisection runs within it. relu: with its activations replaced.

    top: the greatest ratio; 0 for a network that can't be pruned. narrows: the network in float that is narrowed instead,
    and taught: the epochs of that.
    """

    shape: Shape
    size: int | None = None
    importance: str = ""
    relu: bool = False
    top: float = TOP
    backbone: str = ""
    narrows: Design | None = None
    taught: int = 0

    @property
    def whole(self) -> Design:
        """The backbone that it starts from."""
        return Design(relu=self.relu, backbone=self.backbone)

    def ratio(self, design: Design) -> float:
        """Where one of its designs stands."""
        return design.ratio if self.narrows is None else design.narrow

    @property
    def starts_whole(self) -> bool:
        """Whether ratio 0 is a network that is not a backbone already."""
        return bool(self.size) or self.relu

    def design(self, ratio: float, epochs: int, scheme: Scheme) -> Design:
        """The arm's design at a ratio."""
        if self.narrows is not None:
            return replace(self.narrows, narrow=ratio, taught=self.taught, scheme=TRAINED)
        if not ratio:
            return replace(self.whole, size=self.size, epochs=epochs, scheme=scheme)
        return Design(ratio, self.shape, self.importance, self.size, epochs, scheme, self.relu, self.backbone)

    def has(self, design: Design) -> bool:
        """Whether a design is of this arm."""
        if self.narrows is not None or design.narrowed:
            return design.narrowed and design.network == self.narrows
        if (design.size, design.whole) != (self.size, self.whole) or not design.trained:
            return False
        return not design.ratio or (design.shape, design.importance) == (self.shape, self.importance)


@dataclass(frozen=True)
class Space:
    """What may be tried: ways to quantize (the usual and those that mend accuracy), arms, epochs of recovery.

    backbone: of all of them. rivals: points of other backbones, which have to be beaten. own: the recipe's variants that are
    tried as they are. taught: epochs for which narrowed networks are trained, 0 where nothing can be narrowed;
    narrows_first: before pruning, or behind it.
    """

    asked: Asked
    schemes: tuple[Scheme, ...]
    mending: tuple[Scheme, ...]
    arms: tuple[Arm, ...]
    rungs: tuple[int, ...]
    backbone: str = ""
    rivals: tuple[Point, ...] = ()
    own: tuple[str, ...] = ()
    taught: int = 0
    narrows_first: bool = True

    @property
    def whole(self) -> Design:
        """The backbone as it was tuned."""
        return Design(backbone=self.backbone)

    def lengths(self, arm: Arm) -> tuple[int, ...]:
        """Epochs for which an arm's designs are trained, the fewest first."""
        return self.rungs if arm.narrows is None else (arm.taught,)


def propose(history: History, space: Space, predict: Predict) -> Iterator[Design]:
    """Designs worth trying now, the most promising first; none of them is in the history."""
    for design in _proposals(history, space, predict):
        if design not in history:
            yield design


def _proposals(history: History, space: Space, predict: Predict) -> Iterator[Design]:
    yield from (replace(space.whole, scheme=scheme) for scheme in space.schemes)
    if not any(p.accurate and p.design.scheme != "fp32" for p in points(history)):
        yield from (replace(space.whole, scheme=scheme) for scheme in space.mending)
    yield from (Design(own=name) for name in space.own)
    yield from _siblings(history, space, predict)
    if any(arm.relu for arm in space.arms):
        usual = (scheme for scheme in space.schemes if scheme not in _BY_WEIGHTS)
        yield from (replace(space.whole, scheme=scheme, relu=True) for scheme in usual)
    for arm in space.arms:
        if arm.size:
            yield replace(arm.whole, size=arm.size, scheme=leading(history, arm.whole, space.asked.goal))
    for level, arm in _order(history, space):
        ratio = next_ratio(history, space, predict, arm, level)
        if ratio is not None:
            epochs = space.lengths(arm)[level]
            yield arm.design(ratio, epochs, leading(history, arm.whole, space.asked.goal))


def _order(history: History, space: Space) -> Iterator[tuple[int, Arm]]:
    """Levels of recovery and arms: a longer recovery of one arm comes with the short one of the next but one. First
    come sizes that the network keeps its accuracy at as it is, the fastest of them before the others.

    Narrowing comes before or behind all that: of the network at these sizes, at its own, and at others after a short
    recovery.
    """
    shares = _kept_sizes(history)
    narrowings = [(0, arm) for arm in _narrowings(history, space)]
    yield from narrowings if space.narrows_first else ()
    arms = sorted(space.arms, key=lambda arm: shares.get(replace(arm.whole, size=arm.size), 1.0))
    places = [
        (level * 2 + number, level, number) for level in range(len(space.rungs)) for number in range(len(arms))
    ]  # fmt: skip
    yield from ((level, arms[number]) for _, level, number in sorted(places))
    yield from narrowings if not space.narrows_first else ()


def _narrowings(history: History, space: Space) -> Iterator[Arm]:
    """An arm for each network that is narrowed: at sizes that need no recovery, the fastest first, at its own, at others."""
    if not space.taught:
        return
    kept = _kept_sizes(history)
    failed = [f.design.narrow for f in history.values() if isinstance(f, Failure) and f.too_small]
    top = round(min([TOP, *(narrow - GRID for narrow in failed)]), 2)
    sizes = sorted((network for network in kept if not network.relu), key=lambda network: kept[network])
    others = (replace(space.whole, size=arm.size, epochs=space.rungs[0]) for arm in space.arms if arm.size)
    known = {network.size for network in sizes}
    recovered = (network for network in others if network.size not in known)
    for network in dict.fromkeys((*sizes, space.whole, *recovered)):
        yield Arm("uniform", top=top, narrows=network, taught=space.taught)


def _composed(history: History) -> list[Point]:
    """The points that were pruned, resized and quantized, if anything: no variants as they are, nothing narrowed."""
    return [p for p in points(history) if not (p.design.own or p.design.narrowed)]


def _kept_sizes(history: History) -> dict[Design, float]:
    """Networks at other sizes that keep the accuracy without training, and the least share of fp32's latency of each."""
    kept = [p for p in points(history) if p.accurate and p.design.size and not p.design.trained]
    return {p.design.network: p.share for p in sorted(kept, key=lambda p: -p.share)}


def leading(history: History, whole: Design, goal: Goal = "latency") -> Scheme:
    """The way to quantize that is fastest on the whole network among those that keep the accuracy, else fp32.

    With activations replaced none keeps the accuracy before recovery, so the fastest is taken. What `narrow` does
    depends on the weights and changes layers that a latency table knows, so it comes after training, as a sibling. Another
    backbone may be slower than fp32, which is not its own, and become faster when it is made smaller. Once a smaller network
    was trained and tried in float too, the fastest way on the fastest of these leads, unless what counts is `goal` size
    or memory.
    """
    found = [p for p in _composed(history) if p.design.scheme not in _BY_WEIGHTS]
    floats = {p.design for p in found if p.design.trained}
    small = [p for p in found if p.accurate and p.design.whole == whole and p.design.network in floats]
    if small and goal not in OF_FILES:
        return min(small, key=lambda p: p.share).design.scheme
    own = [p for p in found if p.design.network == whole and (whole.backbone or not p.slower)]
    base = [p for p in own if p.accurate or whole.relu]
    return min(base, key=lambda p: p.share).design.scheme if base else "fp32"


def _siblings(history: History, space: Space, predict: Predict) -> Iterator[Design]:
    """Other ways to quantize networks that were trained: where one is best so far, or misses accuracy by little."""
    found = [p for p in _composed(history) if p.design.network not in (Design(), space.whole)]
    trained = [p for p in found if p.accurate and p.design.trained]
    best = pick(found, space.asked.goal) or min(trained, key=lambda p: p.share, default=None)
    if space.asked.goal not in OF_FILES:
        yield from _in_float(trained)
    for point in found:
        rounding = point.drop - point.plain_drop if point.plain_drop is not None else point.drop
        near = not point.accurate and point.too_wrong <= _NEAR and rounding > _ROUNDING
        if point != best and not near:
            continue
        ways = space.schemes if point.accurate else (*space.schemes, *space.mending)
        for scheme in ways:
            sibling = replace(point.design, scheme=scheme)
            if _alike(history, sibling, space.asked.goal) and _worth(history, space, predict, point, sibling):
                yield sibling


def _worth(history: History, space: Space, predict: Predict, point: Point, sibling: Design) -> bool:
    """Whether a network that was trained is promising in another way to quantize it.

    Integers gain less the smaller a network is, so where float leads, they are held against it on the network most like
    this one that has both; what `narrow` takes differs from network to network. The rest is by prediction.
    """
    by_latency = space.asked.goal not in OF_FILES and sibling.scheme not in _BY_WEIGHTS
    if by_latency and point.design.scheme == "fp32":
        small = [p for p in _composed(history) if p.design.trained and p.design.whole == sibling.whole]
        floats = {p.design: p.latency_ms for p in small if p.design.scheme == "fp32"}
        ways = [p for p in small if p.design.scheme == sibling.scheme and p.design.network in floats]
        near = min(
            ways, default=None,
            key=lambda p: (p.design.size != sibling.size, abs(p.design.ratio - sibling.ratio), p.name),
        )  # fmt: skip
        if near is not None and near.latency_ms > PROMISE * floats[near.design.network]:
            return False
    return _promising(history, space, predict, sibling)


def _in_float(trained: Sequence[Point]) -> Iterator[Design]:
    """For each backbone and activations of which no trained network was tried in float, the fastest one."""
    for whole in dict.fromkeys(point.design.whole for point in trained):
        own = [point for point in trained if point.design.whole == whole]
        if all(point.design.scheme != "fp32" for point in own):
            yield min(own, key=lambda point: point.share).design.network


def _alike(history: History, design: Design, goal: Goal) -> bool:
    """Whether its way to quantize was not far slower on the whole network than the leading one, or was not tried there; or
    is float, once a smaller network in float tells how fast others are."""
    small = (p.design for p in _composed(history) if p.design.whole == design.whole and p.design.trained)
    if design.scheme == "fp32" and any(one.scheme == "fp32" for one in small):
        return True
    tried = {p.design.scheme: p.share for p in _composed(history) if p.design.network == design.whole}
    lead = tried.get(leading(history, design.whole, goal), 1.0)
    return design.scheme not in tried or tried[design.scheme] <= SIBLING * lead


def _promising(history: History, space: Space, predict: Predict, design: Design) -> bool:
    """Whether a design is predicted to keep the bound on latency and, where it is the goal, to beat the best."""
    limit = _limit(history, space, predict)
    return limit is None or predict(design) <= limit


def _limit(history: History, space: Space, predict: Predict) -> float | None:
    """The latency in ms that a design must be predicted to reach. A bound out of all reach is none: then the search
    is for what comes closest."""
    found, asked = points(history), space.asked
    limits = []
    if asked.max_latency_ms and _least(history, space, predict) <= asked.max_latency_ms:
        limits.append(asked.max_latency_ms)
    known = [*found, *space.rivals]
    best = pick(known, asked.goal)
    if best is None:
        best = min((p for p in known if p.accurate and not p.slower), key=lambda p: p.share, default=None)
    if asked.goal == "latency" and best is not None:
        base = next((p.latency_ms for p in found if p.name == "fp32"), best.latency_ms / best.share)
        limits.append(PROMISE * base * best.share)
    return min(limits, default=None)


def _least(history: History, space: Space, predict: Predict) -> float:
    """The least latency that is predicted of any design; 0 where there is nothing to make smaller."""
    arms = [*space.arms, *_narrowings(history, space)]
    return min(
        (
            predict(arm.design(arm.top, space.lengths(arm)[0], leading(history, arm.whole, space.asked.goal)))
            for arm in arms
        ),
        default=0.0,
    )


def next_ratio(history: History, space: Space, predict: Predict, arm: Arm, level: int) -> float | None:
    """The next ratio of an arm at a level of recovery, or None when its bisection has ended.

    With goal "accuracy" only what is too large goes on upwards; else what keeps the accuracy does. Longer recovery
    starts at the least ratio that failed with a shorter one, or the first above it that is promising.
    """
    lengths = space.lengths(arm)
    own = [_judged(history, space, arm, epochs) for epochs in lengths]
    kept = [ratio for found in own[: level + 1] for ratio, up in found.items() if up]
    low = max([_floor(history, space, predict, arm, level), *kept])
    high = min((ratio for ratio, up in own[level].items() if not up), default=arm.top + GRID)
    if not own[level] and level > 0:
        before = min((ratio for ratio, up in own[level - 1].items() if not up), default=None)
        if before is None or _hopeless(history, arm, before, lengths[level - 1]):
            return None
        first = max(before, _snapped(low + GRID))
        return first if first <= min(arm.top, before + _LONGER) + GRID / 2 else None
    if high <= low:
        return None
    if not any(own):
        later = low > 0 and any(point.design.trained for point in points(history))
        unsure = arm.starts_whole and replace(arm.whole, size=arm.size) not in _kept_sizes(history)
        careful = unsure or space.asked.max_latency_ms or (later and arm.narrows is None)
        first = _snapped(low + GRID)
        start = START if arm.narrows is None else NARROWED
        first = first if careful else max(first, min(start, arm.top))
        return first if first <= arm.top else None
    middle = _snapped((low + high) / 2)
    return middle if low + GRID / 2 < middle < high - GRID / 2 else None


def _floor(history: History, space: Space, predict: Predict, arm: Arm, level: int) -> float:
    """The greatest ratio of an arm that is predicted to be too slow to be of use (a step below 0 when none is)."""
    limit = _limit(history, space, predict)
    lowest = -GRID if arm.starts_whole else 0.0
    if limit is None:
        return lowest
    scheme, epochs = leading(history, arm.whole, space.asked.goal), space.lengths(arm)[level]
    floor = lowest
    for step in range(0 if arm.starts_whole else 1, round(arm.top / GRID) + 1):
        ratio = round(step * GRID, 2)
        if predict(arm.design(ratio, epochs, scheme)) <= limit:
            break
        floor = ratio
    return floor


def _judged(history: History, space: Space, arm: Arm, epochs: int) -> dict[float, bool]:
    """By ratio, whether to prune more than this: in view of all ways in which the network was quantized."""
    found: dict[float, list[bool]] = {}
    for design, outcome in history.items():
        if arm.has(design) and epochs == (design.taught or design.epochs):
            up = _upwards(outcome, space)
            if up is not None:
                found.setdefault(arm.ratio(design), []).append(up)
    judge = all if space.asked.goal == "accuracy" else any
    return {ratio: judge(ups) for ratio, ups in found.items()}


def _hopeless(history: History, arm: Arm, ratio: float, epochs: int) -> bool:
    """Whether every file of a network ended so far off that training it longer is in vain."""
    found = [
        p
        for p in points(history)
        if arm.has(p.design) and (p.design.ratio, p.design.epochs) == (ratio, epochs)
    ]
    return bool(found) and all(point.too_wrong > _HOPELESS for point in found)


def _upwards(outcome: Outcome, space: Space) -> bool | None:
    """Whether to prune more. A design that failed says nothing, unless it may have asked for too little, or did for too
    much."""
    match outcome:
        case Probe():
            return True
        case Failure():
            little = outcome.design.ratio <= _LITTLE and not outcome.design.narrowed
            return False if outcome.too_small else little or None
        case Point():
            return not outcome.small if space.asked.goal == "accuracy" else outcome.accurate


def _snapped(ratio: float) -> float:
    return round(max(0.0, round(ratio / GRID) * GRID), 2)
