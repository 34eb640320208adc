"""Intervals and paired tests, on numpy arrays. Accuracies are fractions; differences are percentage points.

Every bootstrap draws whole units: the groups that pictures come in (cluster bootstrap, Davison & Hinkley
1997, section 3.8), or the blocks that timings come in. Units that look alike are drawn together by one
multinomial, which is the same distribution and far faster than drawing them one by one. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtrit

from toolchain.runtime.percentiles import percentile as percentile

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Metric = Literal["top1", "balanced"]

Z95 = 1.959963984540054
_DRAWS = 2000
_SEED = 20150715
_CHUNK = 2_000_000  # units drawn at a time: bounds the memory to some 30 MB
_FEWEST = 6  # blocks for an interval
_FEW_GROUPS = 10  # fewer are known to vary more than drawing them again shows
_UNITS = 2000  # most blocks that a bootstrap tells apart: bounds its memory and time
_GRID = 2048  # points at which a resampled median is looked up; exact up to this many samples


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval, all in one unit."""

    value: float
    low: float
    high: float

    @property
    def ci95(self) -> tuple[float, float]:
        """The interval's two ends."""
        return (self.low, self.high)

    def excludes(self, value: float) -> bool:
        """Whether the whole interval lies on one side of `value`: only then do the two differ."""
        return value < self.low or value > self.high


@dataclass(frozen=True)
class Ratio(Interval):
    """A ratio of medians with its interval, and the 10th and 90th percentile of the ratio by block."""

    block_p10: float
    block_p90: float


def top1(probabilities: Floats, labels: Ints) -> float:
    """The share of pictures whose most probable class is the label: [n, C], [n] -> fraction."""
    return float(hits(probabilities, labels).mean())


def balanced(probabilities: Floats, labels: Ints) -> float:
    """The mean of the recalls of the classes that occur in `labels`: [n, C], [n] -> fraction."""
    return float(np.nanmean(recalls(probabilities, labels)))


def recalls(probabilities: Floats, labels: Ints) -> NDArray[np.float64]:
    """The share of each class's pictures that are answered rightly, [C]; NaN for a class without pictures."""
    found = np.bincount(labels, hits(probabilities, labels), probabilities.shape[1])
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    shares: NDArray[np.float64] = np.where(counts > 0, found / np.maximum(counts, 1), np.nan)
    return shares


def hits(probabilities: Floats, labels: Ints) -> NDArray[np.bool_]:
    """Which pictures are answered rightly: [n, C], [n] -> [n]. ValueError for shapes that don't fit."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"needed: [n, C] and [n]; given: {probabilities.shape} and {labels.shape}")
    if not len(labels):
        raise ValueError("there is no accuracy of no pictures")
    right: NDArray[np.bool_] = probabilities.argmax(axis=1) == labels
    return right


def wilson(successes: int, n: int) -> Interval:
    """A share with Wilson's 95 % score interval (Wilson 1927), inside [0, 1] and wide for few n."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is no share")
    share, z2 = successes / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share))


def accuracy_interval(
    probabilities: Floats,
    labels: Ints,
    groups: Sequence[str] | None = None,
    metric: Metric = "top1",
) -> Interval:
    """Accuracy as a fraction, with its 95 % interval.

    Wilson's for top-1 of pictures that stand alone, else a bootstrap by group.
    probabilities [n, C]; labels [n]; groups [n]: pictures of one group are drawn together.
    """
    right = hits(probabilities, labels)
    units = _Units.of(labels, right.astype(np.float64), groups, metric)
    if metric == "top1" and units.count == len(labels):
        return wilson(int(right.sum()), len(labels))
    found = units.interval()
    if found.low < found.high:
        return found
    # All right or all wrong: drawing again shows no spread, so the units are counted as Wilson does.
    bounds = wilson(round(found.value * units.count), units.count)
    return Interval(found.value, min(bounds.low, found.value), max(bounds.high, found.value))


def accuracy_difference(
    reference: Floats,
    candidate: Floats,
    labels: Ints,
    groups: Sequence[str] | None = None,
    metric: Metric = "top1",
) -> Interval:
    """Points of accuracy that `candidate` loses against `reference` on the same pictures; negative: it gains.

    reference, candidate: probabilities [n, C]; labels [n]; groups [n] or None. A bootstrap draws no change that it has
    not seen: of thirty answers of which one was gained, none is ever lost. So the spread of half a flip each way (Agresti
    & Min 2005: half a pair a cell) is added to the bootstrap's, by their squares; it is all there is where no answer
    changes, and next to nothing where many do. Of few groups a bootstrap shows too little spread, of one none: below ten the
    interval is widened as Student's t over groups is, and with one group whose answers change nothing is certain.
    """
    lost = hits(reference, labels).astype(np.float64) - hits(candidate, labels)
    units = _Units.of(labels, 100.0 * lost, groups, metric)
    drawn, half = units.interval(), 100.0 * Z95 * units.one_flip()
    wider = 1.0
    if units.count < min(len(labels), _FEW_GROUPS):
        if units.count == 1 and lost.any():
            return Interval(drawn.value, -100.0, 100.0)
        wider = _student(units.count)
    below, above = (math.hypot(wider * (end - drawn.value), half) for end in drawn.ci95)
    return Interval(drawn.value, max(drawn.value - below, -100.0), min(drawn.value + above, 100.0))


def _student(count: int) -> float:
    """How much wider Student's interval over `count` units is than a bootstrap of them; 1 for one, which has no width."""
    if count == 1:
        return 1.0
    return float(stdtrit(count - 1, 0.975)) / Z95 * math.sqrt(count / (count - 1))


def mcnemar(reference: Floats, candidate: Floats, labels: Ints) -> float:
    """The p-value of the exact two-sided McNemar test that both err equally often; 1.0 without a flip.

    Twice the tail of a fair coin's binomial distribution, which is symmetric.
    """
    first, second = hits(reference, labels), hits(candidate, labels)
    return sign_test(int((first & ~second).sum()), int((second & ~first).sum()))


def sign_test(lost: int, won: int) -> float:
    """The exact two-sided p-value that both counts come from a fair coin; 1.0 for no throw."""
    return min(1.0, 2.0 * float(bdtr(min(lost, won), lost + won, 0.5)))


def agreement(reference: Floats, candidate: Floats) -> Interval:
    """The share of pictures that both give the same top-1 answer, with Wilson's interval: [n, C] twice."""
    same = hits(candidate, reference.argmax(axis=1))
    return wilson(int(same.sum()), len(same))


def ratio_of_medians(a_blocks: Ints, b_blocks: Ints) -> Ratio:
    """median(a) / median(b) of timings [B, k] and [B, k'] in ns; block i of both was taken in the same round.

    A speed-up of `b` over `a`, where a is the slower. The interval draws rounds with replacement (B >= 2).
    """
    if a_blocks.ndim != 2 or b_blocks.ndim != 2 or len(a_blocks) != len(b_blocks) or len(a_blocks) < 2:
        raise ValueError(f"needed: blocks [B, k] twice, B >= 2; given: {a_blocks.shape} and {b_blocks.shape}")
    count = len(a_blocks)
    ratios = np.concatenate(
        [
            _drawn_medians(a_blocks, draws) / _drawn_medians(b_blocks, draws)
            for draws in _draws(np.ones(count, dtype=np.int64))
        ]
    )
    low, high = np.quantile(ratios, (0.025, 0.975))
    value = float(np.median(a_blocks) / np.median(b_blocks))
    p10, p90 = np.quantile(np.median(a_blocks, axis=1) / np.median(b_blocks, axis=1), (0.1, 0.9))
    return Ratio(value, min(float(low), value), max(float(high), value), float(p10), float(p90))


def thin(samples: Ints, count: int = 400) -> list[int]:
    """At most `count` of the samples, evenly spaced by rank, the smallest and the largest among them."""
    ordered = np.sort(np.ravel(samples))
    if len(ordered) > count:
        ordered = ordered[np.linspace(0, len(ordered) - 1, count).round().astype(np.int64)]
    return [int(value) for value in ordered]


def percentile_interval(blocks: Ints, q: float) -> Interval | None:
    """Quantile `q` of timings [B, k] in ns, with a 95 % interval that draws blocks with replacement.

    Blocks, not calls: what disturbs one call often disturbs its neighbours. More than 2,000 blocks are drawn
    in runs of neighbours. None where `percentile` is None, or there are fewer than six blocks: of fewer, the interval that
    drawing them again gives holds the true value far less often than it says.
    """
    value = percentile(blocks, q)
    if value is None or len(blocks) < _FEWEST:
        return None
    units = _units(blocks)
    drawn = np.concatenate(
        [_drawn_quantiles(units, draws, q) for draws in _draws(np.ones(len(units), np.int64))]
    )
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, min(float(low), value), max(float(high), value))


@dataclass(frozen=True)
class _Units:
    """Distinct units of a bootstrap, and how often each is seen [U].

    sums, sizes: [U, K], of values and of pictures by class (K = 1 for top-1).
    """

    sums: NDArray[np.float64]
    sizes: NDArray[np.float64]
    seen: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Ints, values: Floats, groups: Sequence[str] | None, metric: Metric) -> _Units:
        """Collect a value a picture [n] into units."""
        if groups is not None and len(groups) != len(labels):
            raise ValueError(f"{len(groups)} groups for {len(labels)} pictures")
        classes = np.zeros_like(labels) if metric == "top1" else np.unique(labels, return_inverse=True)[1]
        width = int(classes.max()) + 1
        unit = (
            np.arange(len(labels))
            if groups is None
            else np.unique(np.asarray(groups), return_inverse=True)[1]
        )
        if groups is None or len(np.unique(unit)) == len(labels):
            return cls._singles(classes, values, width)
        count = int(unit.max()) + 1
        cell = unit * width + classes
        sums = np.bincount(cell, values, count * width).astype(np.float64).reshape(count, width)
        sizes = np.bincount(cell, minlength=count * width).astype(np.float64).reshape(count, width)
        rows, seen = np.unique(np.hstack([sums, sizes]), axis=0, return_counts=True)
        return cls(rows[:, :width], rows[:, width:], seen)

    @classmethod
    def _singles(cls, classes: Ints, values: Floats, width: int) -> _Units:
        """Units of one picture each: alike when class and value are."""
        rows, seen = np.unique(np.stack([classes, values], axis=1), axis=0, return_counts=True)
        sums, sizes = np.zeros((len(rows), width)), np.zeros((len(rows), width))
        at = (np.arange(len(rows)), rows[:, 0].astype(np.int64))
        sums[at], sizes[at] = rows[:, 1], 1.0
        return cls(sums, sizes, seen)

    @property
    def count(self) -> int:
        """How many units there are."""
        return int(self.seen.sum())

    def interval(self) -> Interval:
        """The mean over classes of the mean value, with the 2.5th and 97.5th percentile of the bootstrap."""
        drawn = np.concatenate([_mean_of_classes(d @ self.sums, d @ self.sizes) for d in _draws(self.seen)])
        value = float(_mean_of_classes(self.seen @ self.sums, self.seen @ self.sizes))
        low, high = np.quantile(drawn, (0.025, 0.975))
        return Interval(value, min(float(low), value), max(float(high), value))

    def one_flip(self) -> float:
        """The standard error, as a fraction, that half a flip each way among all pictures would have."""
        pictures = self.seen @ self.sizes  # [K]; a flip lands in a class as often as its pictures come
        return float(np.sqrt(np.sum(1.0 / pictures) / (pictures.sum() + 2)) / len(pictures))


def _draws(seen: Ints) -> Iterator[NDArray[np.int64]]:
    """How often each of U distinct units comes up when as many as there are are drawn: [r, U] at a time.

    Many copies of few units: one multinomial a draw. Many distinct units: drawn one by one and counted.
    """
    generator = np.random.default_rng(_SEED)
    total, distinct = int(seen.sum()), len(seen)
    unit = np.repeat(np.arange(distinct), seen)
    rows = max(1, min(_DRAWS, _CHUNK // total))
    for start in range(0, _DRAWS, rows):
        count = min(rows, _DRAWS - start)
        if 8 * distinct < total:
            yield generator.multinomial(total, seen / total, size=count)
        else:
            drawn = unit[generator.integers(0, total, size=(count, total))]
            drawn += distinct * np.arange(count)[:, None]
            yield np.bincount(drawn.ravel(), minlength=count * distinct).reshape(count, distinct)


def _mean_of_classes(sums: Floats, sizes: Floats) -> NDArray[np.float64]:
    """[..., K] -> [...]: the mean over the classes that were drawn at all."""
    means = np.divide(sums, sizes, out=np.zeros_like(sums, dtype=np.float64), where=sizes > 0)
    mean: NDArray[np.float64] = means.sum(axis=-1) / (sizes > 0).sum(axis=-1)
    return mean


def _units(blocks: Ints) -> Ints:
    """Neighbouring blocks [B, k] joined, so that at most `_UNITS` are drawn: [U, m * k].

    The last blocks that fill no unit (fewer than m = ceil(B / _UNITS)) are left out.
    """
    joined = -(-len(blocks) // _UNITS)
    count = len(blocks) // joined
    return blocks[: count * joined].reshape(count, -1)


def _drawn_medians(blocks: Ints, draws: Ints) -> NDArray[np.float64]:
    """The median of the samples [B, k] of each draw of blocks [R, B] -> [R]."""
    return _drawn_quantiles(blocks, draws, 0.5)


def _drawn_quantiles(blocks: Ints, draws: Ints, q: float) -> NDArray[np.float64]:
    """Quantile `q` of the samples [B, k] of each draw of blocks [R, B] -> [R], to within one of `_GRID` ranks.

    Counting, for each block once, the samples below points of a common grid turns a draw into one product.
    Above the median every one of the largest samples is a point: p99.9 lies among them.
    """
    ordered = np.sort(np.ravel(blocks))
    last = len(ordered) - 1
    ranks = np.unique(np.linspace(0, last, min(len(ordered), _GRID)).round().astype(np.int64))
    if q > 0.5:
        ranks = np.union1d(ranks, np.arange(max(0, last - _GRID // 2), last + 1))
    grid = ordered[ranks]
    below = np.empty((len(blocks), len(grid)), np.float32)
    for row, block in zip(below, blocks, strict=True):
        row[:] = np.searchsorted(np.sort(block), grid, side="right")
    covered = draws.astype(np.float32) @ below  # samples at or below each point, [R, grid]
    found: NDArray[np.float64] = grid[(covered >= q * blocks.size).argmax(axis=1)].astype(np.float64)
    return found
