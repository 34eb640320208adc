"""What to try next, from what was found: a pure function, so that a search that was killed finds its way again.

1. Ways to quantize the network as it is: seconds each; then the recipe's own variants that are made otherwise.
2. For every arm (how channels are chosen, input size, importance), pruning by bisection: towards the greatest share
   that keeps the accuracy, or, with goal "accuracy", the smallest that keeps the other bounds. Narrowing likewise, of the
   network as it is, and at smaller inputs; at last of the best so far, if it was pruned.
3. Longer recovery where a shorter one failed, sooner if by little; other sizes as long as the network's own needed.
   For each network that was trained, the other ways to quantize it. The fastest is tried in float as well, and others
   that promise to be faster so: what is fastest on the whole network may be slower on a small one.
4. When nothing else is left, longer recovery of what a shorter one has all but ruled out.

A design is proposed only if the latency that is predicted for it keeps its bound and beats what was found so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from toolchain.optimize.arms import OF_FILES, Arm, Predict, Space
from toolchain.optimize.asked import Goal
from toolchain.optimize.bisection import begins, nearly_enough, next_ratio, untroubled
from toolchain.optimize.design import Design
from toolchain.optimize.known import (
    BY_WEIGHTS,
    before_narrow,
    composed,
    kept_sizes,
    leading,
    limit,
    narrowings,
    promising,
    whole_ms,
)
from toolchain.optimize.points import History, Point, pick, points

_SIBLING = 1.25  # a way to quantize is tried on a pruned network when on the whole one it took so much of the best at most
_NEAR = 3.0  # points of accuracy within which another way to quantize may mend a miss
_ROUNDING = 0.1  # points that rounding to integers must have cost, or another way of it mends nothing


def propose(history: History, space: Space, predict: Predict) -> Iterator[Design]:
    """Designs worth trying now, the most promising first, each once; none of them is in the history. The last ones are what
    a shorter recovery has all but ruled out."""
    told = set(history)
    for design in _proposals(history, space, predict):
        if design not in told:
            told.add(design)
            yield design


def _proposals(history: History, space: Space, predict: Predict) -> Iterator[Design]:
    yield from (replace(space.whole, scheme=scheme) for scheme in space.schemes)
    if not any(p.accurate and p.design.scheme != "fp32" for p in points(history)):
        yield from (replace(space.whole, scheme=scheme) for scheme in space.mending)
    yield from (Design(own=name) for name in space.own)
    yield from _siblings(history, space, predict)
    if any(arm.relu for arm in space.arms):
        usual = (scheme for scheme in space.schemes if scheme not in BY_WEIGHTS)
        yield from (replace(space.whole, scheme=scheme, relu=True) for scheme in usual)
    sized = {p.design.network for p in composed(history) if p.design.size and not p.design.trained}
    for arm in space.arms:
        if arm.size and replace(arm.whole, size=arm.size) not in sized:
            yield replace(arm.whole, size=arm.size, scheme=leading(history, arm.whole, space.asked.goal))
    order = list(_order(history, space))
    for patient in (False, True):
        for level, arm in order:
            ratio = next_ratio(history, space, predict, arm, level, patient=patient)
            if ratio is not None:
                epochs = space.lengths(arm)[level]
                yield arm.design(ratio, epochs, leading(history, arm.whole, space.asked.goal))


def _order(history: History, space: Space) -> Iterator[tuple[int, Arm]]:
    """Levels of recovery and arms, in the order in which they come.

    First other sizes of which it is known how long to recover them, each until it fails. Of the rest, a longer recovery
    of one arm comes with the short one of the next but one, or, where the short one missed by little, before that one goes
    on; sizes that the network keeps its accuracy at as it is are the first arms, the fastest of them before the others.

    Narrowing comes before or behind all that: of the network at these sizes and at its own; at others, after a short
    recovery, it comes last.
    """
    shares = kept_sizes(history)
    narrowed = [(0, arm) for arm in narrowings(history, space)]
    first = [one for one in narrowed if space.narrows_first and not one[1].narrows_recovered]
    yield from first
    arms = sorted(space.arms, key=lambda arm: shares.get(replace(arm.whole, size=arm.size), 1.0))
    yield from ((begins(history, space, arm), arm) for arm in arms if untroubled(history, space, arm))
    places = [
        (level * 2 + number, level, number) for level in range(len(space.rungs)) for number in range(len(arms))
    ]  # fmt: skip
    for _, level, number in sorted(places):
        if nearly_enough(history, space, arms[number], level):
            yield level + 1, arms[number]
        yield level, arms[number]
    yield from (one for one in narrowed if one not in first)


def _siblings(history: History, space: Space, predict: Predict) -> Iterator[Design]:
    """Other ways to quantize networks that were trained: where one is best so far, or would be if the best had not been
    narrowed, or misses accuracy by little."""
    found = [p for p in composed(history) if p.design.network not in (Design(), space.whole)]
    trained = [p for p in found if p.accurate and p.design.trained]
    best = pick(found, space.asked.goal) or min(trained, key=lambda p: p.share, default=None)
    if space.asked.goal not in OF_FILES:
        yield from _in_float(history, space, predict, trained)
    by_latency = space.asked.goal == "latency"
    for point in found:
        rounding = point.drop - point.plain_drop if point.plain_drop is not None else point.drop
        near = not point.accurate and point.too_wrong <= _NEAR and rounding > _ROUNDING
        unnarrowed = (
            by_latency and best is not None and point.accurate and point.share < before_narrow(found, best)
        )
        if point != best and not near and not unnarrowed:
            continue
        ways = space.schemes if point.accurate else (*space.schemes, *space.mending)
        for scheme in ways:
            sibling = replace(point.design, scheme=scheme)
            if _alike(history, sibling, space.asked.goal) and _worth(history, space, predict, point, sibling):
                yield sibling


def _worth(history: History, space: Space, predict: Predict, point: Point, sibling: Design) -> bool:
    """Whether a network that was trained is promising in another way to quantize it.

    How the two ways compare on the network most like this one that has both, tells more than a prediction: integers gain
    less the smaller a network is.
    """
    most, base = limit(history, space, predict), whole_ms(points(history))
    if space.asked.goal not in OF_FILES and most is not None and base is not None:
        small = [p for p in composed(history) if p.design.trained and _of_one_arm(p.design, sibling)]
        known = {p.design.network: p.share for p in small if p.design.scheme == point.design.scheme}
        ways = [p for p in small if p.design.scheme == sibling.scheme and p.design.network in known]
        near = min(
            ways, default=None,
            key=lambda p: (p.design.size != sibling.size, abs(p.design.ratio - sibling.ratio), p.name),
        )  # fmt: skip
        if near is not None and base * point.share * near.share / known[near.design.network] > most:
            return False
    return promising(history, space, predict, sibling)


def _of_one_arm(one: Design, other: Design) -> bool:
    """Whether their channels were chosen in the same way, whatever the size."""
    return (one.whole, one.shape, one.importance) == (other.whole, other.shape, other.importance)


def _in_float(history: History, space: Space, predict: Predict, trained: Sequence[Point]) -> Iterator[Design]:
    """Trained networks as they are: for each backbone and activations the fastest, if none was tried in float, and then,
    where latency is the goal, those that are predicted to beat the best so. Below some size integers gain nothing more,
    and floats do."""
    for whole in dict.fromkeys(point.design.whole for point in trained):
        own = sorted((p for p in trained if p.design.whole == whole), key=lambda p: (p.share, p.name))
        if all(point.design.scheme != "fp32" for point in own):
            yield own[0].design.network
        elif space.asked.goal == "latency":
            networks = dict.fromkeys(point.design.network for point in own)
            yield from (network for network in networks if promising(history, space, predict, network))


def _alike(history: History, design: Design, goal: Goal) -> bool:
    """Whether its way to quantize was not far slower on the whole network than the leading one, or was not tried there; or
    is float, once a smaller network in float tells how fast others are."""
    small = (p.design for p in composed(history) if p.design.whole == design.whole and p.design.trained)
    if design.scheme == "fp32" and any(one.scheme == "fp32" for one in small):
        return True
    tried = {p.design.scheme: p.share for p in composed(history) if p.design.network == design.whole}
    lead = tried.get(leading(history, design.whole, goal), 1.0)
    return design.scheme not in tried or tried[design.scheme] <= _SIBLING * lead
