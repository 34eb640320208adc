"""Where a series of figures changed its level for good: optimal segmentation with a penalty.

Exact minimum of squared distances to segment means plus a penalty a segment, by dynamic programming over
all last changes (Jackson et al. 2005, An algorithm for optimal partitioning of data on an interval; the
problem that PELT prunes, Killick et al. 2012), on logarithms, so that equal ratios weigh equally. The noise
is estimated from differences of neighbours, which a change of level hardly touches. Single outliers are
drawn in towards their neighbours first, and a level must last at least three records to be one. A series has
hundreds of points, so the exact n² is quick enough and nothing needs to be pruned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SHORTEST = 3  # records that a level must last
LONGEST = 2000  # records looked at: the latest
_PENALTY = 4.0  # times log(n), in units of the noise's variance
_LEAST_NOISE = 0.002  # of a figure: what is steadier than this is not told apart
_CLIP = 3.0
_NORMAL = 1.4826  # from a median absolute deviation to a standard deviation


@dataclass(frozen=True)
class Change:
    """A new level from `index` on; medians of the levels before and after."""

    index: int
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """after / before: above 1 is slower, or more."""
        return self.after / self.before


def changes(values: Sequence[float]) -> tuple[Change, ...]:
    """The changes of level in figures above nought, in order of time."""
    skipped = max(0, len(values) - LONGEST)
    kept = np.asarray(values[skipped:], np.float64)
    if len(kept) < 2 * SHORTEST:
        return ()
    logs = np.log(kept)
    noise = max(_LEAST_NOISE, _NORMAL * float(np.median(np.abs(np.diff(logs)))) / math.sqrt(2))
    cuts = [0, *_segments(_calmed(logs, noise) / noise, _PENALTY * math.log(len(logs))), len(kept)]
    levels = [float(np.median(kept[a:b])) for a, b in pairwise(cuts)]
    return tuple(
        Change(skipped + cut, before, after)
        for cut, before, after in zip(cuts[1:-1], levels[:-1], levels[1:], strict=True)
    )


def _calmed(logs: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Each value at most three noises from the median of the five around it."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(logs, 2, mode="edge"), 5)
    middle = np.median(around, axis=1)
    found: NDArray[np.float64] = np.clip(logs, middle - _CLIP * noise, middle + _CLIP * noise)
    return found


def _segments(values: NDArray[np.float64], penalty: float) -> list[int]:
    """Where the best segmentation begins new segments; values [n] in units of their noise."""
    count = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    squares = np.concatenate([[0.0], np.cumsum(values**2)])
    best = np.full(count + 1, np.inf)
    best[0] = -penalty
    last = np.zeros(count + 1, np.int64)
    for end in range(SHORTEST, count + 1):
        starts = np.arange(0, end - SHORTEST + 1)
        totals = sums[end] - sums[starts]
        cost = squares[end] - squares[starts] - totals**2 / (end - starts)
        total = best[starts] + cost + penalty
        last[end] = starts[total.argmin()]
        best[end] = total.min()
    cuts = []
    end = count
    while last[end] > 0:
        end = int(last[end])
        cuts.append(end)
    return cuts[::-1]
