"""When to stop and what may be said then: an anytime-valid interval for the centre of paired log ratios.

The unit is a *turn*: two fresh processes, one a side, timed in blocks of random order; its value x is the
logarithm of the candidate's time over the base's. Which side starts, and who is interrupted by the rest of
the machine, is drawn or befalls both alike, so around its centre m a turn is as likely to err upwards as
downwards, by the same amounts: given |x - m| and all turns before, the sign of x - m is a fair coin. That is
all that is assumed. No variance, no normal distribution, no equal noise from turn to turn; for a file
against itself it holds exactly, whatever else the machine does.

A fair coin can be betted on. Whoever stakes the share c tanh(λ (x - m)) of their money on every turn has
multiplied it by 1 + c tanh(λ (x - m)), which is 1 on average where m is the centre: the money is a
nonnegative martingale, and reaches 1/α ever, at any turn, with a probability of at most α (Ville 1939). So
every m against which the money reaches 1/α is refused, and what is left is an interval that holds at every
look at once (Waudby-Smith & Ramdas 2024, Estimating means of bounded random variables by betting; bets on
signs of symmetric errors: Howard et al. 2021, section 3, after de la Peña 1999). Money is spread evenly over
several c (how bold) and λ (which size of difference counts), so nothing must be known beforehand. tanh
bounds what one turn can do: a burst of load that makes a turn 40 % off costs one bet and not the verdict.
Against the t-test by mixture (Lai 1976; Wang & Ramdas 2023) in simulation: twice as many turns where the
noise is normal and small, as many at 3 %, and a decision where one turn in seven is disturbed, where that
test mostly finds none (tests/test_compare_sequential.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["pass", "regression", "inconclusive"]
Floats = NDArray[np.floating[Any]]

ALPHA = 0.005  # of each of the two errors: refusing a ratio from above, and from below
_BOLD = np.array([0.35, 0.7, 0.95])
_SIZES = 2.0 ** np.arange(3, 13, 1.5)  # λ: differences of 12 % down to 0.03 %
_STEPS = 60
# Even when every turn says the same, so many are needed until the money suffices.
FEWEST_TURNS = next(
    n
    for n in range(1, 100)
    if math.log(float(np.mean(np.repeat((1 + _BOLD) ** n, len(_SIZES))))) > math.log(1 / ALPHA)
)


@dataclass(frozen=True)
class Estimate:
    """A ratio with its interval, which holds at every look: low is 0 and high infinite while nothing is known."""

    ratio: float
    low: float
    high: float

    def verdict(self, bound: float) -> Verdict:
        """What the interval says of a ratio that must not exceed `bound` (1.05: not 5 % slower)."""
        if self.low > bound:
            return "regression"
        return "pass" if self.high < bound else "inconclusive"


def evidence(values: Floats, centre: float, side: Literal[1, -1]) -> NDArray[np.float64]:
    """Log of the money won by betting that values lie above (`side` 1) or below (-1) `centre`, after each.

    values: [..., n], in the order in which they came -> [..., n]. Falls as `centre` rises, for side 1.
    """
    away = side * (np.asarray(values, np.float64)[..., None, None, :] - centre)
    stake = _BOLD[:, None, None] * np.tanh(_SIZES[:, None] * away)
    money = np.cumsum(np.log1p(stake), axis=-1)
    most = money.max(axis=(-3, -2), keepdims=True)
    spread = np.exp(money - most).mean(axis=(-3, -2))
    won: NDArray[np.float64] = most[..., 0, 0, :] + np.log(spread)
    return won


def estimate(log_ratios: Floats, alpha: float = ALPHA) -> Estimate:
    """The centre of log ratios [n] as a ratio, and the interval of all that were not refused. ValueError for n = 0.

    Refused once is refused for good: the interval is what is left of those of all looks, so it never widens
    as turns are added. Each end errs with a probability of at most `alpha`, over all looks at a growing
    series. (Ends that have passed each other, which noise as assumed does at most that often, are swapped:
    nothing between them is said.) The point is the Hodges-Lehmann estimator, the centre of symmetry's own
    (Hodges & Lehmann 1963), or the end of the interval that is nearest to it.
    """
    values = np.asarray(log_ratios, np.float64)
    low, high = sorted((_end(values, 1, alpha), _end(values, -1, alpha)))
    centre = min(max(hodges_lehmann(values), low), high)
    return Estimate(math.exp(centre), math.exp(low), math.exp(high))


def hodges_lehmann(values: Floats) -> float:
    """The median of the means of all pairs of values (each with itself too), [n], n >= 1."""
    if not len(values):
        raise ValueError("there is no centre of no values")
    rows, columns = np.triu_indices(len(values))
    return float(np.median((values[rows] + values[columns]) / 2))


def typical_verdict(found: Estimate, bound: float, most: float) -> Verdict:
    """What the typical ratio says, of two bounds: regression where it is above the tighter one for certain; pass where
    it is inside `bound` for certain, or inside `most` for certain and inside `bound` by its estimate.

    So a pass errs on `most` with a probability of at most ALPHA, over all looks; the estimate makes it stricter only.
    A single tight bound would keep everybody waiting, for medians are noisier than fastest calls.
    """
    certain = found.verdict(min(bound, most))
    if certain != "inconclusive":
        return certain
    return "pass" if found.high < most and found.ratio <= bound else "inconclusive"


def decide(
    log_ratios: Floats, typical: Floats, bound: float, most: float, alpha: float = ALPHA
) -> tuple[Verdict, int]:
    """The verdict on two series [n] of log ratios and the turn at which it fell: `bound` of both, `most` of the typical.

    The same as asking `estimate` of both after every turn, and stopping as `compare` does where latency and typical
    latency alone have bounds (`judge.settled`): at a regression of either, or when both pass; for replays.
    """
    slower, inside = _refused(log_ratios, math.log(bound), alpha)
    drags, fine = _refused(typical, math.log(min(bound, most)), alpha)
    kept = _refused(typical, math.log(most), alpha)[1]
    regression = (slower & ~inside) | (drags & ~fine)
    for turn in np.flatnonzero(regression | (inside & ~slower)):
        if regression[turn]:
            return "regression", int(turn) + 1
        likely = kept[turn] and hodges_lehmann(typical[: turn + 1]) <= math.log(bound)
        if (fine[turn] and not drags[turn]) or likely:
            return "pass", int(turn) + 1
    return "inconclusive", len(log_ratios)


def _refused(values: Floats, at: float, alpha: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether `at` was refused until each turn [n]: because values lie above it, because they lie below."""
    goal = math.log(1 / alpha)
    above, below = (np.logical_or.accumulate(evidence(values, at, side) > goal) for side in (1, -1))
    return above, below


def _end(values: NDArray[np.float64], side: Literal[1, -1], alpha: float) -> float:
    """The last centre that betting on `side` ever refused: the interval's low (1) or high (-1) end."""
    goal = math.log(1 / alpha)

    def refused(centre: float) -> bool:
        return bool(evidence(values, centre, side).max() > goal)

    centre = hodges_lehmann(values)
    far = centre - side * (2 + float(np.ptp(values)))
    if not refused(far):
        return -side * math.inf
    near = centre + side * (2 + float(np.ptp(values)))
    for _ in range(_STEPS):
        middle = (far + near) / 2
        far, near = (middle, near) if refused(middle) else (far, middle)
    return far
