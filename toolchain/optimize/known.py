"""What follows from the points found so far: the way to quantize that leads, sizes that keep the accuracy, the latency
that is still to be reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from toolchain.optimize.arms import GRID, OF_FILES, Arm, Predict, Space
from toolchain.optimize.asked import Goal
from toolchain.optimize.design import TOP, Design, Scheme
from toolchain.optimize.points import Failure, History, Point, pick, points

PROMISE = 0.97  # of the best latency so far: what a design must be predicted to reach, or it is not tried
BY_WEIGHTS: frozenset[Scheme] = frozenset({"int8-narrow"})  # how fast they are is known after recovery only


def leading(history: History, whole: Design, goal: Goal = "latency") -> Scheme:
    """The way to quantize that is fastest on the whole network among those that keep the accuracy, else fp32.

    With activations replaced none keeps the accuracy before recovery, so the fastest is taken. What `narrow` does
    depends on the weights and changes layers that a latency table knows, so it comes after training, as a sibling. Another
    backbone may be slower than fp32, which is not its own, and become faster when it is made smaller. Once a smaller network
    was trained and tried in float too, the fastest way on the fastest of these leads, unless what counts is `goal` size
    or memory.
    """
    found = [p for p in composed(history) if p.design.scheme not in BY_WEIGHTS]
    floats = {p.design for p in found if p.design.trained}
    small = [p for p in found if p.accurate and p.design.whole == whole and p.design.network in floats]
    if small and goal not in OF_FILES:
        return min(small, key=lambda p: p.share).design.scheme
    own = [p for p in found if p.design.network == whole and (whole.backbone or not p.slower)]
    base = [p for p in own if p.accurate or whole.relu]
    return min(base, key=lambda p: p.share).design.scheme if base else "fp32"


def composed(history: History) -> list[Point]:
    """The points that were pruned, resized and quantized, if anything: no variants as they are, nothing narrowed."""
    return [p for p in points(history) if not (p.design.own or p.design.narrowed)]


def kept_sizes(history: History) -> dict[Design, float]:
    """Networks at other sizes that keep the accuracy without training, and the least share of fp32's latency of each."""
    kept = [p for p in points(history) if p.accurate and p.design.size and not p.design.trained]
    return {p.design.network: p.share for p in sorted(kept, key=lambda p: -p.share)}


def narrowings(history: History, space: Space) -> Iterator[Arm]:
    """An arm for each network that is narrowed: at sizes that need no recovery, the fastest first, at its own, at others;
    the last is the best so far, if it was pruned."""
    if not space.taught:
        return
    kept = kept_sizes(history)
    sizes = sorted((network for network in kept if not network.relu), key=lambda network: kept[network])
    others = (replace(space.whole, size=arm.size, epochs=space.rungs[0]) for arm in space.arms if arm.size)
    known = {network.size for network in sizes}
    recovered = (network for network in others if network.size not in known)
    for network in dict.fromkeys((*sizes, space.whole, *recovered, *_best_pruned(history, space))):
        top = _narrowest(history, network)
        yield Arm("uniform", top=top, narrows=network, taught=space.taught)


def _best_pruned(history: History, space: Space) -> list[Design]:
    """The network of the best point so far, if it was pruned. With goal "accuracy" nothing is gained by less of it."""
    best = best_of(points(history), space.asked.goal)
    if best is None or not best.design.ratio or best.design.relu or space.asked.goal == "accuracy":
        return []
    return [best.design.network]


def _narrowest(history: History, network: Design) -> float:
    """How far a network can be narrowed: what was too much for one size is for all, unless that one had been pruned."""
    failures = (found for found in history.values() if isinstance(found, Failure) and found.too_small)
    refused = (found.design for found in failures if found.design.narrowed)
    failed = [one.narrow for one in refused if not one.ratio or one.network == network]
    return round(min([TOP, *(narrow - GRID for narrow in failed)]), 2)


def promising(history: History, space: Space, predict: Predict, design: Design) -> bool:
    """Whether a design is predicted to keep the bound on latency and, where it is the goal, to beat the best."""
    most = limit(history, space, predict)
    return most is None or predict(design) <= most


def limit(history: History, space: Space, predict: Predict, *, unnarrowed: bool = False) -> float | None:
    """The latency in ms that a design must be predicted to reach. A bound out of all reach is none: then the search
    is for what comes closest. unnarrowed: of a design that `narrow` may yet make smaller, which is held against what the
    best one was before."""
    found, asked = points(history), space.asked
    limits = []
    if asked.max_latency_ms and _least(history, space, predict) <= asked.max_latency_ms:
        limits.append(asked.max_latency_ms)
    known = [*found, *space.rivals]
    best = best_of(known, asked.goal)
    if asked.goal == "latency" and best is not None:
        base = whole_ms(found) or best.latency_ms / best.share
        limits.append(PROMISE * base * (before_narrow(found, best) if unnarrowed else best.share))
    return min(limits, default=None)


def best_of(found: Sequence[Point], goal: Goal) -> Point | None:
    """The best point, or the fastest that keeps the accuracy where none keeps every bound."""
    lasting = (p for p in found if p.accurate and not p.slower)
    return pick(found, goal) or min(lasting, key=lambda p: p.share, default=None)


def whole_ms(found: Sequence[Point]) -> float | None:
    """fp32's latency in ms as it was measured first: what shares are multiplied by."""
    return next((p.latency_ms for p in found if p.name == "fp32"), None)


def before_narrow(found: Sequence[Point], best: Point) -> float:
    """The least share of fp32's latency that the best point's network has without `narrow`."""
    if best.design.scheme not in BY_WEIGHTS:
        return best.share
    same = [p for p in found if p.design.network == best.design.network and not p.design.narrowed]
    plain = min((p.share for p in same if p.design.scheme not in BY_WEIGHTS), default=best.share)
    return max(best.share, plain)


def _least(history: History, space: Space, predict: Predict) -> float:
    """The least latency that is predicted of any design; 0 where there is nothing to make smaller."""
    arms = [*space.arms, *narrowings(history, space)]
    return min(
        (
            predict(arm.design(arm.top, space.lengths(arm)[0], leading(history, arm.whole, space.asked.goal)))
            for arm in arms
        ),
        default=0.0,
    )
