"""Bisection within an arm: the next ratio at a length of recovery, and when a longer one comes."""

from __future__ import annotations

from dataclasses import replace

from toolchain.optimize.arms import GRID, Arm, Predict, Space
from toolchain.optimize.known import kept_sizes, leading, limit
from toolchain.optimize.points import Failure, History, Outcome, Point, Probe, points

_START, _NARROWED = 0.5, 0.75  # where pruning and narrowing begin
_LITTLE = 0.2  # a ratio that may round to nothing in every layer
_HOPELESS = 15.0  # points by which a short recovery may miss a bound for a longer one to be tried
_LONGER = 2 * GRID  # how much more than what a short recovery failed at is worth a longer one


def next_ratio(
    history: History, space: Space, predict: Predict, arm: Arm, level: int, *, patient: bool = False
) -> float | None:
    """The next ratio of an arm at a level of recovery, or None when its bisection has ended.

    With goal "accuracy" only what is too large goes on upwards; else what keeps the accuracy does. Longer recovery
    starts at the least ratio that failed with a shorter one, or the first above it that is promising. patient: however
    much a shorter one lost, and however far that ratio is.
    """
    lengths = space.lengths(arm)
    own = [_judged(history, space, arm, epochs) for epochs in lengths]
    kept = [ratio for found in own[: level + 1] for ratio, up in found.items() if up]
    low = max([_floor(history, space, predict, arm, level), *kept])
    high = min((ratio for ratio, up in own[level].items() if not up), default=arm.top + GRID)
    begins = _needed(history, space, arm)
    if level < begins or high <= low:
        return None
    if not own[level] and level > begins:
        before = min((ratio for ratio, up in own[level - 1].items() if not up), default=None)
        if before is None or (not patient and _hopeless(history, arm, before, lengths[level - 1])):
            return None
        first, last = max(before, _snapped(low + GRID)), arm.top if patient else before + _LONGER
        return first if first <= min(arm.top, last) + GRID / 2 else None
    if not any(own) and not begins:
        first = _start(history, space, arm, low)
        return first if first <= arm.top else None
    middle = _snapped((low + high) / 2)
    return middle if low + GRID / 2 < middle < high - GRID / 2 else None


def _start(history: History, space: Space, arm: Arm, low: float) -> float:
    """The first ratio of an arm: boldly, or no more than needed where nothing says that it keeps the accuracy."""
    later = low > 0 and any(point.design.trained for point in points(history))
    unsure = arm.starts_whole and replace(arm.whole, size=arm.size) not in kept_sizes(history)
    careful = unsure or space.asked.max_latency_ms or (later and arm.narrows is None)
    first = _snapped(low + GRID)
    bold = _START if arm.narrows is None else _NARROWED
    return first if careful else max(first, min(bold, arm.top))


def _floor(history: History, space: Space, predict: Predict, arm: Arm, level: int) -> float:
    """The greatest ratio of an arm that is predicted to be too slow to be of use (a step below 0 when none is)."""
    most = limit(history, space, predict)
    lowest = -GRID if arm.starts_whole else 0.0
    if most is None:
        return lowest
    scheme, epochs = leading(history, arm.whole, space.asked.goal), space.lengths(arm)[level]
    floor = lowest
    for step in range(0 if arm.starts_whole else 1, round(arm.top / GRID) + 1):
        ratio = round(step * GRID, 2)
        if predict(arm.design(ratio, epochs, scheme)) <= most:
            break
        floor = ratio
    return floor


def nearly_enough(history: History, space: Space, arm: Arm, level: int) -> bool:
    """Whether a recovery failed by little and none of the next length was tried. Not with goal "accuracy", where failing
    is to be small enough."""
    if level + 1 >= len(space.rungs) or space.asked.goal == "accuracy":
        return False
    if _judged(history, space, arm, space.rungs[level + 1]):
        return False
    own = [p for p in points(history) if arm.has(p.design) and p.design.epochs == space.rungs[level]]
    return any(not p.accurate and p.worst <= _HOPELESS / 2 for p in own)


def _needed(history: History, space: Space, arm: Arm) -> int:
    """The level that an arm begins at: at another size, the shortest recovery by which the network at its own size is
    pruned beyond where a shorter one failed."""
    if not arm.size or space.asked.goal == "accuracy":
        return 0
    own = [_judged(history, space, replace(arm, size=None), epochs) for epochs in space.rungs]
    for level in range(1, len(own)):
        failed = [ratio for found in own[:level] for ratio, up in found.items() if not up]
        if failed and any(up and ratio >= min(failed) for ratio, up in own[level].items()):
            return level
    return 0


def untroubled(history: History, space: Space, arm: Arm) -> bool:
    """Whether it is known how long an arm at another size is to be recovered, and no such recovery has failed."""
    begins = _needed(history, space, arm)
    return begins > 0 and all(_judged(history, space, arm, space.rungs[begins]).values())


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
    return bool(found) and all(point.worst > _HOPELESS for point in found)


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
