"""The interval that holds at every look: what it promises, under noise that is not normal, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from toolchain.compare import judge
from toolchain.compare.gates import Gates
from toolchain.compare.live import Half, Turn
from toolchain.compare.sequential import (
    ALPHA,
    FEWEST_TURNS,
    Estimate,
    decide,
    estimate,
    evidence,
    hodges_lehmann,
    typical_verdict,
)

Series = NDArray[np.float64]


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Series:
    return rng.normal(0, 0.01, shape)


def heavy(rng: np.random.Generator, shape: tuple[int, int]) -> Series:
    """Student's t with 1.5 degrees of freedom: no variance at all."""
    return 0.01 * rng.standard_t(1.5, shape)


def bursts(rng: np.random.Generator, shape: tuple[int, int]) -> Series:
    """Every seventh turn is disturbed, on one side or the other, by 5 to 40 %."""
    hit = rng.random(shape) < 1 / 7
    return normal(rng, shape) + hit * rng.choice([-1, 1], shape) * rng.uniform(0.05, 0.4, shape)


def swelling(rng: np.random.Generator, shape: tuple[int, int]) -> Series:
    """Noise that grows a hundredfold from the first turn to the last."""
    return rng.normal(0, 1, shape) * np.geomspace(0.001, 0.1, shape[1])


def dragging(rng: np.random.Generator, shape: tuple[int, int]) -> Series:
    """Noise whose size follows from the turn before: loud times and quiet times."""
    found = np.empty(shape)
    size = np.full(shape[0], 0.01)
    for turn in range(shape[1]):
        found[:, turn] = rng.normal(0, 1, shape[0]) * size
        size = np.clip(0.7 * size + 0.4 * np.abs(found[:, turn]), 0.002, 0.2)
    return found


MOST = 1.15
NOISES = (normal, heavy, bursts, swelling, dragging)


def false_refusals(noise: Callable[..., Series], series: int, turns: int) -> float:
    """The share of series in which betting above the true centre ever wins: promised are at most ALPHA."""
    rng = np.random.default_rng(20150715)
    parts = (evidence(noise(rng, (500, turns)), 0.0, 1) for _ in range(series // 500))  # bounds the memory
    return float(np.mean([(money.max(axis=1) >= math.log(1 / ALPHA)).mean() for money in parts]))


@pytest.mark.parametrize("noise", NOISES)
def test_the_true_ratio_is_refused_at_no_look_but_half_a_percent(noise: Callable[..., Series]) -> None:
    # 2,000 series of 60 looks: 0.005 + 2.5 standard errors of that
    assert false_refusals(noise, 2000, 60) <= ALPHA + 2.5 * math.sqrt(ALPHA / 2000)


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_the_true_ratio_is_refused_at_no_look_of_many(noise: Callable[..., Series]) -> None:
    assert false_refusals(noise, 10_000, 300) <= ALPHA + 2.5 * math.sqrt(ALPHA / 10_000)


@pytest.mark.parametrize("noise", [normal, heavy, bursts])
def test_files_that_are_equal_pass_and_are_never_called_regressions(noise: Callable[..., Series]) -> None:
    rows = noise(np.random.default_rng(1), (200, 40))
    verdicts = [decide(row, row, 1.05, MOST)[0] for row in rows]
    assert verdicts.count("regression") == 0
    assert verdicts.count("pass") >= 190


@pytest.mark.parametrize(
    ("slower", "bound", "turns", "least"), [(1.05, 1.02, 60, 0.95), (1.02, 1.005, 200, 0.95)]
)
@pytest.mark.parametrize("noise", [normal, bursts])
def test_a_true_slowdown_is_found(
    noise: Callable[..., Series], slower: float, bound: float, turns: int, least: float
) -> None:
    rows = math.log(slower) + noise(np.random.default_rng(2), (100, turns))
    verdicts = [decide(row, row, bound, MOST)[0] for row in rows]
    assert verdicts.count("regression") >= least * len(rows)
    assert verdicts.count("pass") == 0


def t_mixture(values: Series, centre: float, strength: float = 4.0) -> NDArray[np.float64]:
    """Log of the evidence of the t-test by mixture (Lai 1976) that values lie above `centre`: [R, n] -> [R, n]."""
    away = values - centre
    count = np.arange(1, values.shape[1] + 1)
    total, squares, weight = away.cumsum(axis=1), (away**2).cumsum(axis=1), 1 / strength
    share = np.clip(total**2 / ((count + weight) * squares), 0, 1 - 1e-12)
    money = 0.5 * np.log(weight / (count + weight)) - count / 2 * np.log1p(-share) + math.log(2)
    return np.where((total > 0) & (count > 1), money, -np.inf)


def median_turns(money: NDArray[np.float64]) -> float:
    won = money >= math.log(1 / ALPHA)
    return float(np.median(np.where(won.any(axis=1), won.argmax(axis=1) + 1, np.inf)))


def test_what_the_bets_cost_and_what_they_bring_against_a_t_test() -> None:
    rng, bound = np.random.default_rng(3), math.log(1.02)
    small = math.log(1.05) + rng.normal(0, 0.005, (300, 60))
    large = math.log(1.05) + rng.normal(0, 0.03, (300, 60))
    disturbed = math.log(1.05) + bursts(rng, (300, 60))
    assert median_turns(evidence(small, bound, 1)) <= 2.5 * median_turns(t_mixture(small, bound))
    assert median_turns(evidence(large, bound, 1)) <= 1.3 * median_turns(t_mixture(large, bound))
    assert median_turns(evidence(disturbed, bound, 1)) <= 20
    assert median_turns(t_mixture(disturbed, bound)) > 40


def test_evidence_falls_as_the_centre_rises_and_mirrors() -> None:
    values = normal(np.random.default_rng(4), (1, 30))[0]
    money = [evidence(values, centre, 1)[-1] for centre in np.linspace(-0.1, 0.1, 41)]
    assert all(a >= b for a, b in pairwise(money))
    assert evidence(values, 0.01, 1) == pytest.approx(evidence(-values, -0.01, -1))


def test_the_interval_holds_the_point_and_narrows() -> None:
    values = normal(np.random.default_rng(5), (1, 200))[0]
    found = [estimate(values[:n]) for n in (FEWEST_TURNS, 40, 200)]
    assert all(one.low <= one.ratio <= one.high for one in found)
    widths = [one.high - one.low for one in found]
    assert widths == sorted(widths, reverse=True)
    assert estimate(values[: FEWEST_TURNS - 1]) == Estimate(
        estimate(values[: FEWEST_TURNS - 1]).ratio, 0.0, math.inf
    )


def test_the_interval_is_what_the_bets_do_not_refuse() -> None:
    values = 0.02 + bursts(np.random.default_rng(6), (1, 50))[0]
    found, goal = estimate(values), math.log(1 / ALPHA)
    for end, side in ((found.low, 1), (found.high, -1)):
        outside, inside = math.log(end) - side * 1e-6, math.log(end) + side * 1e-6
        assert evidence(values, outside, side).max() > goal > evidence(values, inside, side).max()  # type: ignore[arg-type]


def test_what_was_refused_once_stays_refused() -> None:
    values = np.append(0.05 + normal(np.random.default_rng(8), (1, 15))[0], np.full(25, 0.0))
    looks = [estimate(values[:n]) for n in range(FEWEST_TURNS, len(values) + 1)]
    assert all(
        a.low <= b.low <= b.high <= a.high for a, b in pairwise(looks[:20])
    )  # until the ends meet: this is no noise
    assert all(one.low <= one.ratio <= one.high for one in looks)
    assert looks[5].verdict(1.02) == "regression"


def test_ends_that_have_passed_each_other_say_nothing_of_what_lies_between() -> None:
    values, between = np.repeat([0.05, -0.05], 200), 1.03
    assert all(evidence(values, math.log(between), side).max() > math.log(1 / ALPHA) for side in (1, -1))
    found = estimate(values)
    assert found.low < between < found.high
    assert found.verdict(between) == "inconclusive"
    assert decide(values, values, between, MOST) == ("regression", FEWEST_TURNS)  # it fell before


def test_one_wild_turn_does_not_turn_a_verdict() -> None:
    values = np.full(14, math.log(1.05))
    assert estimate(values).verdict(1.02) == "regression"
    assert estimate(np.append(values, -0.7)).verdict(1.02) == "regression"


def test_verdicts_compare_whole_intervals_with_the_bound() -> None:
    assert Estimate(1.06, 1.051, 1.07).verdict(1.05) == "regression"
    assert Estimate(1.01, 0.99, 1.049).verdict(1.05) == "pass"
    assert Estimate(1.04, 1.03, 1.06).verdict(1.05) == "inconclusive"
    assert (
        typical_verdict(Estimate(1.04, 1.0, 1.2), 1.05, 1.15) == "inconclusive"
    )  # not certain of either bound
    assert typical_verdict(Estimate(1.06, 1.0, 1.1), 1.05, 1.15) == "inconclusive"  # looks too slow
    assert typical_verdict(Estimate(1.04, 1.0, 1.1), 1.05, 1.15) == "pass"
    assert typical_verdict(Estimate(1.02, 1.0, 1.04), 1.05, 1.15) == "pass"
    assert typical_verdict(Estimate(1.1, 1.06, 1.2), 1.05, 1.15) == "regression"
    assert (
        typical_verdict(Estimate(1.02, 1.01, 1.04), 1.05, 1.03) == "inconclusive"
    )  # its own bound is the tighter one
    assert typical_verdict(Estimate(1.035, 1.031, 1.04), 1.05, 1.03) == "regression"


@pytest.mark.parametrize("noise", [(0.01, 0.05), (0.01, 0.12), (0.03, 0.08)])
def test_a_green_with_a_typical_call_slower_than_its_bound_is_as_rare_as_promised(
    noise: tuple[float, float],
) -> None:
    """True at the edge of `most` and just beyond it, looked at after each of 40 turns: at most ALPHA are green."""
    rng = np.random.default_rng(9)
    for slower in (MOST, 1.2):
        fast, typical = (rng.normal(0, scale, (300, 40)) for scale in noise)
        greens = sum(
            decide(x, math.log(slower) + y, 1.05, MOST)[0] == "pass"
            for x, y in zip(fast, typical, strict=True)
        )
        assert greens <= 1 + ALPHA * 300


def test_the_typical_bound_costs_equal_files_few_greens() -> None:
    """Twice as noisy as the fastest calls, and a turn in seven disturbed: 20 turns do."""
    rng = np.random.default_rng(4)
    fast, typical = rng.normal(0, 0.012, (200, 20)), rng.normal(0, 0.03, (200, 20))
    typical += (rng.random((200, 20)) < 1 / 7) * rng.normal(0, 0.2, (200, 20))
    verdicts = [decide(x, y, 1.05, MOST)[0] for x, y in zip(fast, typical, strict=True)]
    assert verdicts.count("regression") == 0
    assert verdicts.count("pass") >= 190


def turns_of(fast: Series, typical: Series) -> list[Turn]:
    """Turns whose log ratios are these (of whole ns): a call left out, the fastest, the median twice over."""

    def half(fastest: float, median: float) -> Half:
        block = (1, round(fastest), round(median), round(median))
        return Half((block, block), 1, 1, 1)

    return [
        Turn(half(1e9, 3e9), half(1e9 * math.exp(x), 3e9 * math.exp(y)), 1)
        for x, y in zip(fast, typical, strict=True)
    ]


@pytest.mark.parametrize(
    ("shift", "typical_shift", "expected"),
    [(0.0, 0.0, "pass"), (0.03, 0.0, "inconclusive"), (0.05, 0.0, "regression"), (0.029, 0.08, "regression"),
     (0.0, 0.04, None), (0.0, 0.032, None)],
)  # fmt: skip
@pytest.mark.parametrize("most", [15.0, 3.0, 2.0])
def test_a_replay_stops_where_the_live_comparison_stops(
    shift: float, typical_shift: float, expected: str | None, most: float
) -> None:
    rng = np.random.default_rng(7)
    fast, typical = shift + rng.normal(0, 0.012, 40), typical_shift + rng.normal(0, 0.02, 40)
    turns, gates = turns_of(fast, typical), Gates(latency=3, typical=most, cold_start=None, memory=None)
    live = ("inconclusive", 40)
    for n in range(1, 41):
        checks = judge.turn_checks(turns[:n], gates)
        if judge.settled(checks):
            worse = any(check.verdict == "regression" for check in checks)
            live = ("regression" if worse else "pass", n)
            break
    assert decide(fast, typical, 1.03, 1 + most / 100) == live
    assert expected in (None, live[0]) or most < 3


def test_the_centre_is_hodges_and_lehmanns() -> None:
    assert hodges_lehmann(np.array([1.0])) == 1.0
    assert hodges_lehmann(np.array([1.0, 2.0, 10.0])) == pytest.approx(3.75)  # 1 1.5 2 5.5 6 10
    with pytest.raises(ValueError, match="no values"):
        hodges_lehmann(np.array([]))
