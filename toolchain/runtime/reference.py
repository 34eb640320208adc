"""A model's pace in units of a reference's, so that figures of different hours can be set against each other.

What else a machine does takes its processors away, or clocks them down: the same call takes two or three times as long an
hour later. A small network of known work that takes turns with the model, in the same thread, slows down alike, and the
ratio of both times of the processor stays, nearly: what empties the caches costs a small network more than a large one. So
the share of the time in which the thread had a processor is told as well. Where several threads or a GPU work, the
processor's time says nothing of how long they take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from time import perf_counter_ns, thread_time_ns
from typing import NamedTuple

import numpy as np

from toolchain.runtime.session import Session
from toolchain.runtime.timing import quiet, time_calls
from toolchain.runtime.warm_up import Steadiness, warm_up

# x, float32 [1, 32, 32, 32] -> y [1, 32, 1, 1]: three times Relu(Conv 3x3, 32 channels, weights of 1/288), then their
# mean; opset 18. 28 million multiplications, half a millisecond on a core of a server. Another network would be another
# unit: never change it.
NETWORK = (
    b'\x08\x08:\xbd\x02\n2\n\x01s\x12\x01w"\x0fConstantOfShape*\x19\n\x05value*\r\x08\x01\x10\x01"\x049\x8e'
    b'c;B\x01v\xa0\x01\x04\n#\n\x01x\n\x01w\x12\x02c0"\x04Conv*\x11\n\x04pads@\x01@\x01@\x01@\x01\xa0\x01'
    b'\x07\n\x0e\n\x02c0\x12\x02r0"\x04Relu\n$\n\x02r0\n\x01w\x12\x02c1"\x04Conv*\x11\n\x04pads@\x01@\x01@'
    b'\x01@\x01\xa0\x01\x07\n\x0e\n\x02c1\x12\x02r1"\x04Relu\n$\n\x02r1\n\x01w\x12\x02c2"\x04Conv*\x11\n'
    b'\x04pads@\x01@\x01@\x01@\x01\xa0\x01\x07\n\x0e\n\x02c2\x12\x02r2"\x04Relu\n\x1a\n\x02r2\x12\x01y"\x11'
    b"GlobalAveragePool\x12\x01g*\r\x08\x04\x10\x07:\x04  \x03\x03B\x01sZ\x1b\n\x01x\x12\x16\n\x14\x08\x01"
    b"\x12\x10\n\x02\x08\x01\n\x02\x08 \n\x02\x08 \n\x02\x08 b\x1b\n\x01y\x12\x16\n\x14\x08\x01\x12\x10\n"
    b"\x02\x08\x01\n\x02\x08 \n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\x12"
)
INPUT = "x"
_TURNS = (3, 8)  # at least, at most
_SECONDS = 0.03  # of one side in a turn, and of one call at least
_ALL_SECONDS = 0.4  # of the model in all turns, about
_WARM_UP = Steadiness(windows=2, window_seconds=0.03, seconds=1.0)


def reference(load: Callable[[bytes], Session]) -> Callable[[], object]:
    """A call of the reference network; `load` makes its session as the model's was made."""
    session = load(NETWORK)
    feed = {INPUT: np.random.default_rng(0).random((1, 32, 32, 32), np.float32)}
    return lambda: session.run(feed)


class Pace(NamedTuple):
    """call_ns: the median wall time of a call; relative: its mean time of the processor in units of the reference's, the
    median over turns; share: of the wall time of all turns, in which the thread had a processor."""

    call_ns: int
    relative: float
    share: float


def paced(model: Callable[[], object], unit: Callable[[], object]) -> Pace:
    """Let `model` and `unit` take turns in this thread, which alone works for both."""
    with quiet():
        for side in (model, unit):
            warm_up(side, _WARM_UP)
        counts = [max(1, math.ceil(1e9 * _SECONDS / median(time_calls(side, 3)))) for side in (model, unit)]
        samples: list[int] = []
        ratios: list[float] = []
        begun, worked = perf_counter_ns(), thread_time_ns()
        while len(ratios) < _TURNS[0] or (len(ratios) < _TURNS[1] and sum(samples) < 1e9 * _ALL_SECONDS):
            start = thread_time_ns()
            samples += time_calls(model, counts[0])
            between = thread_time_ns()
            time_calls(unit, counts[1])
            ratios.append((between - start) / counts[0] / ((thread_time_ns() - between) / counts[1]))
        share = (thread_time_ns() - worked) / (perf_counter_ns() - begun)
    return Pace(int(median(samples)), median(ratios), min(1.0, share))


def typical(model: Callable[[], object]) -> int:
    """The median wall time of a call of `model` in ns, once warm, of about as many calls."""
    with quiet():
        warm_up(model, _WARM_UP)
        calls = math.ceil(1e9 * _ALL_SECONDS / median(time_calls(model, 3)))
        return int(median(time_calls(model, max(_TURNS[0], calls))))
