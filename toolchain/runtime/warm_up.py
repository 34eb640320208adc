"""Calling until the times no longer fall: how a warm-up's end is found, and when it is given up.

Calls are timed in windows. A side is steady once the medians of the last few windows lie close together:
Georges, Buytaert & Eeckhout (Statistically Rigorous Java Performance Evaluation, OOPSLA 2007, section 4.2)
ask that the coefficient of variation of the last k iterations falls under a bound; pyperf compares samples
of consecutive windows in the same spirit. Medians stand for the windows, so that one interrupted call does not
prolong the wait. What never settles (Barrett et al., Virtual Machine Warmup Blows Hot and Cold, OOPSLA 2017) is
measured all the same after `seconds`, and the record says that it was not steady.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns

from toolchain.runtime.bench_record import WarmUp
from toolchain.runtime.timing import Side, time_calls

_MOST = 10_000  # calls a window


@dataclass(frozen=True)
class Steadiness:
    """Steady: the medians of the last `windows` windows differ by at most `tolerance` of the smallest.

    A window is as many calls as last `window_seconds`, 3 to 10,000 of them, by the time of the second call (the
    first one pays for what is made once). seconds: the wait's limit.
    """

    tolerance: float = 0.03
    windows: int = 4
    window_seconds: float = 0.05
    seconds: float = 10.0


def warm_up(side: Side, until: Steadiness) -> WarmUp:
    """Call `side` until it is steady or the time is up; at least one window is called."""
    start = perf_counter_ns()
    _, second = time_calls(side, 2)
    size = min(_MOST, max(3, math.ceil(until.window_seconds * 1e9 / max(second, 1))))
    medians: list[float] = []
    calls = 2
    while True:
        medians.append(median(time_calls(side, size)))
        calls += size
        seconds = (perf_counter_ns() - start) / 1e9
        steady = is_steady(medians, until)
        if steady or seconds >= until.seconds:
            return WarmUp(calls, round(seconds, 3), steady)


def is_steady(medians: list[float], until: Steadiness) -> bool:
    """Whether the last windows' medians, in order, lie within the tolerance of each other."""
    last = medians[-until.windows :]
    return len(last) == until.windows and max(last) <= (1 + until.tolerance) * min(last)
