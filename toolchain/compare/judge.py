"""From finished turns and two files to checks: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolchain.compare.gates import Gates
from toolchain.compare.live import Turn
from toolchain.compare.model import Check, Outcome
from toolchain.compare.sequential import Estimate, estimate, typical_verdict
from toolchain.runtime.bench_record import ModelFile

UNKNOWN = Estimate(1.0, 0.0, math.inf)
LATENCY, TYPICAL, COLD_START, MEMORY = TIMED = ("latency", "typical latency", "cold start", "memory")


class Seen(NamedTuple):
    """A ratio with its interval, its bound in percent (None: not judged), and the figure of each side."""

    estimate: Estimate
    bound: float | None
    base: float
    candidate: float
    each: Literal["ns", "bytes", "1"]


class _Figure(NamedTuple):
    """A field of `live.Half`, and how its check is called."""

    name: str
    field: str
    each: Literal["ns", "bytes"]
    note: str


_COLD_START = _Figure(COLD_START, "first_answer_ns", "ns", "process start to first answer")
_MEMORY = _Figure(MEMORY, "peak_bytes", "bytes", "peak of a fresh process")


def ratio_check(name: str, seen: Seen, note: str = "") -> Check:
    """The check of a ratio."""
    bound = None if seen.bound is None else 1 + seen.bound / 100
    found = seen.estimate
    verdict: Outcome = "not judged" if bound is None else found.verdict(bound)
    return Check(
        name=name, verdict=verdict, value=found.ratio, low=found.low or None,
        high=found.high if math.isfinite(found.high) else None, bound=bound,
        base=seen.base, candidate=seen.candidate, each=seen.each, note=note,
    )  # fmt: skip


def latency_checks(turns: Sequence[Turn], bound: float | None, most: float | None) -> tuple[Check, Check]:
    """The candidate's time over the base's: of the fastest calls by `bound`, of the median calls by both bounds, in
    percent; see `typical_verdict`.
    """
    fastest = np.median(np.stack([turn.fastest for turn in turns]), axis=(0, 2))
    medians = np.median(np.stack([turn.medians for turn in turns]), axis=(0, 2))
    judged = estimate(np.array([turn.log_ratio for turn in turns]))
    watched = estimate(np.array([turn.typical_log_ratio for turn in turns]))
    latency = ratio_check(LATENCY, Seen(judged, bound, *_ns(fastest)), "fastest call of a block")
    typical = ratio_check(TYPICAL, Seen(watched, most, *_ns(medians)), "median call of a block")
    if bound is not None and most is not None:
        verdict = typical_verdict(watched, 1 + bound / 100, 1 + most / 100)
        note = typical.note
        if verdict == "regression" and typical.bound and watched.verdict(typical.bound) != "regression":
            note += f", and above latency's bound of {1 + bound / 100:.3f} for certain"
        typical = typical.model_copy(update={"verdict": verdict, "note": note})
    return latency, typical


def _ns(sides: NDArray[np.float64]) -> tuple[float, float, Literal["ns"]]:
    return float(sides[0]), float(sides[1]), "ns"


def turn_checks(turns: Sequence[Turn], gates: Gates) -> tuple[Check, ...]:
    """Latency, cold start and memory, from one turn or more."""
    checks = list(latency_checks(turns, gates.latency, gates.typical_bound))
    for figure, bound in ((_COLD_START, gates.cold_start), (_MEMORY, gates.memory)):
        halves = [(getattr(t.base, figure.field), getattr(t.candidate, figure.field)) for t in turns]
        if not all(base and candidate for base, candidate in halves):
            continue  # a kernel that does not say
        base, candidate = map(float, np.median(np.array(halves, np.float64), axis=0))
        found = estimate(np.array([math.log(second / first) for first, second in halves]))
        checks.append(ratio_check(figure.name, Seen(found, bound, base, candidate, figure.each), figure.note))
    return tuple(checks)


def size_check(base: ModelFile, candidate: ModelFile, gates: Gates) -> Check:
    """The candidate's bytes over the base's: known exactly."""
    ratio = candidate.bytes / base.bytes
    known = Seen(Estimate(ratio, ratio, ratio), None, base.bytes, candidate.bytes, "bytes")
    check = ratio_check("size", known, "of the file, external weights counted")
    if gates.size is None:
        return check
    bound = 1 + gates.size / 100
    return check.model_copy(update={"bound": bound, "verdict": "regression" if ratio > bound else "pass"})


def exact(name: str, value: float, bound: float | None, note: str = "", *, least: bool = False) -> Check:
    """A figure without an interval, judged against a greatest (or least) value; no figure is above every bound."""
    kept = (
        not math.isnan(value) and (value >= bound if least else value <= bound) if bound is not None else True
    )
    verdict: Outcome = "not judged" if bound is None else "pass" if kept else "regression"
    shown = value if math.isfinite(value) else None
    return Check(name=name, verdict=verdict, value=shown, unit="1", bound=bound, note=note)


def settled(checks: Sequence[Check]) -> bool:
    """Whether no more turns are needed: nothing is open, latency or typical latency is a regression, or something
    else is one and latency is decided."""
    undecided = [check.name for check in checks if check.verdict == "inconclusive"]
    worse = [check.name for check in checks if check.verdict == "regression"]
    slower = LATENCY in worse or TYPICAL in worse
    return not undecided or slower or (bool(worse) and LATENCY not in undecided)
