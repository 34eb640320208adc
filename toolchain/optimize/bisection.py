"""Bisection within an arm: the next ratio at a length of recovery, and when a longer one comes."""

from __future__ import annotations

from collections.abc import Mapping
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

    With goal "accuracy" only what is too large goes on upwards; else what keeps the accuracy does. A longer recovery than
    the arm begins with starts at the least ratio that failed with the next shorter one, or the first above it that is
    promising. patient: however much that one lost, and however far above it.
    """
    lengths, begin = space.lengths(arm), begins(history, space, arm)
    own = [_judged(history, space, arm, epochs) for epochs in lengths]
    low = max(
        [_floor(history, space, predict, arm, level), *(r for found in own for r, up in found.items() if up)]
    )
    high = min((r for found in own[level:] for r, up in found.items() if not up), default=arm.top + GRID)
    if level < begin or high <= low:
        return None
    if not own[level] and level > begin:
        before = _failed(own[level - 1])
        if before is None or (not patient and _missed(history, arm, before, lengths[level - 1]) > _HOPELESS):
            return None
        first, last = max(before, _snapped(low + GRID)), arm.top if patient else before + _LONGER
        return first if first <= min(arm.top, last) + GRID / 2 else None
    if not any(own) and not begin:
        first = _start(history, space, arm, low)
        return first if first <= arm.top else None
    middle = _snapped((low + high) / 2)
    return middle if low + GRID / 2 < middle < high - GRID / 2 else None


def _start(history: History, space: Space, arm: Arm, low: float) -> float:
    """The first ratio of an arm: boldly, or no more than needed where nothing says that it keeps the accuracy."""
    later = low > 0 and any(point.design.trained for point in points(history))
    unsure = arm.starts_whole and replace(arm.whole, size=arm.size) not in kept_sizes(history)
    pruned = arm.narrows is not None and arm.narrows.ratio > 0
    careful = unsure or space.asked.max_latency_ms or pruned or (later and arm.narrows is None)
    first = _snapped(low + GRID)
    bold = _START if arm.narrows is None else _NARROWED
    return first if careful else max(first, min(bold, arm.top))


def _floor(history: History, space: Space, predict: Predict, arm: Arm, level: int) -> float:
    """The greatest ratio of an arm that is predicted to be too slow to be of use (a step below 0 when none is)."""
    most = limit(history, space, predict, unnarrowed=arm.narrows is None)
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
    """Whether the least ratio that failed at a level missed by little, and none was recovered for the next length. Not with
    goal "accuracy", where failing is to be small enough."""
    lengths = space.lengths(arm)
    if level + 1 >= len(lengths) or space.asked.goal == "accuracy":
        return False
    short, longer = (_judged(history, space, arm, epochs) for epochs in lengths[level : level + 2])
    failed = _failed(short)
    return (
        failed is not None and not longer and _missed(history, arm, failed, lengths[level]) <= _HOPELESS / 2
    )


def begins(history: History, space: Space, arm: Arm) -> int:
    """The level that an arm begins at: at another size, the shortest recovery by which the network at its own size was
    pruned as far as a shorter one failed at, or further. Not with goal "accuracy"."""
    if not arm.size or space.asked.goal == "accuracy":
        return 0
    same = replace(arm, size=None)
    own = [_judged(history, space, same, epochs) for epochs in space.rungs]
    for level in range(1, len(own)):
        failed = [ratio for found in own[:level] if (ratio := _failed(found)) is not None]
        if failed and any(ratio >= min(failed) for ratio in _kept(history, same, space.rungs[level])):
            return level
    return 0


def untroubled(history: History, space: Space, arm: Arm) -> bool:
    """Whether it is known how long an arm at another size is to be recovered, and no such recovery has failed."""
    begin = begins(history, space, arm)
    return begin > 0 and _failed(_judged(history, space, arm, space.rungs[begin])) is None


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


def _failed(judged: Mapping[float, bool]) -> float | None:
    """The least ratio from which it does not go upwards."""
    return min((ratio for ratio, up in judged.items() if not up), default=None)


def _kept(history: History, arm: Arm, epochs: int) -> set[float]:
    """Ratios of an arm that kept the accuracy after so many epochs."""
    found = (p for p in points(history) if p.accurate and arm.has(p.design) and p.design.epochs == epochs)
    return {arm.ratio(point.design) for point in found}


def _missed(history: History, arm: Arm, ratio: float, epochs: int) -> float:
    """Points by which the best file of a network missed a bound."""
    found = (p for p in points(history) if arm.has(p.design) and p.design.epochs == epochs)
    return min((point.worst for point in found if arm.ratio(point.design) == ratio), default=0.0)


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
