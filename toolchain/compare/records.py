"""Two bench records against each other, where the models themselves are no longer at hand.

They were not interleaved: the machine may have been twice as slow at one time as at the other. So on one thread of the CPU
each record's fresh processes let a reference take turns with the model (runtime/reference.py), and latency is judged in its
units, one figure a process, because what a single process measures is also its luck with memory. Where a record's
processes had to wait for a processor the caches were emptied between, which the two bear unalike: it stays open
(benchmarks/compare/saved.py), as a cold start does, which is in wall time. Only one machine's records may be compared.

The interval is Hodges and Lehmann's for a shift, of logarithms: the differences of all pairs of processes in order, of
which the Mann-Whitney test leaves out so many at each end (Hodges & Lehmann 1963; Hollander, Wolfe & Chicken 2014,
section 4.3). It needs no distribution, and is exact for few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from toolchain.compare.gates import Gates
from toolchain.compare.judge import COLD_START, MEMORY, UNKNOWN, Seen, ratio_check
from toolchain.compare.model import Check
from toolchain.compare.sequential import ALPHA, Estimate
from toolchain.compare.unjudged import is_set, open_check
from toolchain.errors import RecordError
from toolchain.runtime import host
from toolchain.runtime.bench_record import BenchRecord, Case, ColdStart, Condition

FEWEST = 6  # fresh processes a side for an interval
_NONE = ColdStart((), ())
_EXACT = 30  # figures a side up to which the test's distribution is counted; above it is nearly normal
UNSURE = "in wall time, and a busy hour can be that much: compare the models themselves"
NOT_INTERLEAVED = (
    "saved records were not interleaved: latencies are in units of a reference that each record timed as well, and what "
    "slowed it down otherwise than the model is in the ratio"
)


def record_checks(base: BenchRecord, candidate: BenchRecord, gates: Gates) -> tuple[Check, ...]:
    """Latency, cold start and memory for every condition that both records have.

    What is missing is told by `left_out`; where somebody set a bound for it, it is an inconclusive check, too.

    Raises RecordError for records of different machines, and for records without a common condition.
    """
    first, second = host.fingerprint(base.host), host.fingerprint(candidate.host)
    if first != second:
        raise RecordError(
            f"the records come from different machines ({first}; {second}), whose times cannot be compared; "
            f"compare the models themselves on one of them"
        )
    pairs = _pairs(base, candidate)
    if not pairs:
        raise RecordError(
            "the records have no condition in common (provider, threads, batch, spinning, input)"
        )
    several = len(pairs) > 1
    found: list[Check] = []
    versions = [host.onnxruntime(record.host) for record in (base, candidate)]
    for one, other in pairs:
        checks = _checks(one, other, gates, f" ({_words(one)})" if several else "")
        found += [_of_versions(checks[0], versions), *checks[1:]]
    for name, case in _lonely(base, candidate):
        for bound in filter(partial(is_set, gates), ("latency", "cold_start", "memory")):
            figure = f"{bound.replace('_', ' ')} ({_words(case)})"
            found.append(open_check(figure, getattr(gates, bound), f"only the {name} has this condition"))
    return tuple(found)


def _same(one: Case, other: Case) -> bool:
    """Whether two cases may be set against each other: all of the condition but the file's kind."""
    first, second = asdict(one.condition), asdict(other.condition)
    return {**first, "file": ""} == {**second, "file": ""} and one.copies == other.copies


def _words(case: Case) -> str:
    return case.condition.words + (f", copies {case.copies}" if case.copies else "")


def _lonely(base: BenchRecord, candidate: BenchRecord) -> list[tuple[str, Case]]:
    """The conditions that only one of both has."""
    both = (("base", base, candidate), ("candidate", candidate, base))
    return [
        (name, case)
        for name, own, other in both
        for case in own.cases
        if not any(_same(case, one) for one in other.cases)
    ]


def left_out(base: BenchRecord, candidate: BenchRecord) -> list[str]:
    """A sentence for everything that only one record has, or has too little of to be judged."""
    found = [f"only the {name} has the condition {_words(case)}" for name, case in _lonely(base, candidate)]
    for one, other in _pairs(base, candidate):
        for figure, counts in _held(one, other).items():
            if reason := _reason(figure, counts):
                found.append(f"{figure} ({_words(one)}) is not judged: {reason}")
    return found


def _pairs(base: BenchRecord, candidate: BenchRecord) -> list[tuple[Case, Case]]:
    return [(one, other) for one in base.cases for other in candidate.cases if _same(one, other)]


def _held(base: Case, candidate: Case) -> dict[str, list[int]]:
    """How many figures each side has of what a case may lack."""
    sides = (base, candidate)
    return {
        COLD_START: [len(case.cold_start_ns.first_answer) if case.cold_start_ns else 0 for case in sides],
        MEMORY: [FEWEST * bool(case.memory) for case in sides],  # one is exact
    }


def _reason(figure: str, counts: Sequence[int]) -> str:
    """Why so many figures a side decide nothing; empty where they do."""
    if not all(counts):
        names = [name for name, count in zip(("base", "candidate"), counts, strict=True) if not count]
        return f"not in the record of the {' and the '.join(names)}"
    if min(counts) < FEWEST:
        return f"only {_needed(min(counts))}"
    return ""


def _needed(count: int) -> str:
    return (
        f"{count} fresh processes on one side, {FEWEST} are needed (toolchain bench --cold-starts {FEWEST})"
    )


def _checks(base: Case, candidate: Case, gates: Gates, suffix: str) -> list[Check]:
    held = _held(base, candidate)
    return [
        _latency(base, candidate, gates, suffix),
        *_optional(COLD_START, _cold_start(base, candidate, gates, suffix), held, gates, suffix),
        *_optional(MEMORY, _memory(base, candidate, gates, suffix), held, gates, suffix),
    ]


def _latency(base: Case, candidate: Case, gates: Gates, suffix: str) -> Check:
    """In units of the reference, by fresh processes, where both records have enough of them; otherwise one process's calls
    a side, which decide nothing."""
    starts = [case.cold_start_ns or _NONE for case in (base, candidate)]
    if reason := _few(base.condition, starts):
        middles = [float(np.median(case.blocks)) for case in (base, candidate)]
        estimate = Estimate(middles[1] / middles[0], UNKNOWN.low, UNKNOWN.high)
        seen = Seen(estimate, gates.latency, middles[0], middles[1], "ns")
        return ratio_check(
            f"latency{suffix}", seen, f"one process a side, whose luck with memory is in it; {reason}"
        )
    relative = [np.array(one.relative) for one in starts]
    middles = [float(np.median(one)) for one in relative]
    seen = Seen(unpaired(*relative), gates.latency, middles[0], middles[1], "1")
    counts = " and ".join(str(len(one)) for one in relative)
    note = f"of {counts} fresh processes, in units of a reference that took turns with the model"
    check = ratio_check(f"latency{suffix}", seen, note)
    shares = [one.busy for one in starts if one.busy is not None]
    if not shares or check.verdict == "not judged":
        return check
    busy = f"a record of a busy hour (it had a processor for {100 * min(shares):.0f} % of the time) decides nothing"
    return check.model_copy(update={"verdict": "inconclusive", "note": f"{note}; {busy}"})


def _of_versions(latency: Check, versions: Sequence[str]) -> Check:
    """The latency, open where the reference ran on another onnxruntime: what it gained or lost would cancel."""
    if versions[0] == versions[1] or latency.verdict == "not judged":
        return latency
    note = f"{latency.note}; the reference ran on {' and on '.join(versions)}: compare the models themselves"
    return latency.model_copy(update={"verdict": "inconclusive", "note": note})


def _few(condition: Condition, starts: Sequence[ColdStart]) -> str:
    """Why these fresh processes cannot decide a latency; empty where they can."""
    if condition.provider != "cpu" or condition.threads != 1:
        return "of several threads or a GPU nothing else can be said: compare the models themselves"
    few = min(len(one.session) for one in starts)
    if few < FEWEST:
        return _needed(few)
    if not all(one.relative for one in starts):
        return "a record of before has no latency by fresh process: bench the model again"
    return ""


def _optional(
    figure: str, check: Check | None, held: Mapping[str, Sequence[int]], gates: Gates, suffix: str
) -> list[Check]:
    """The check of what a case may lack: a bound that somebody set stays open, a default is not judged."""
    reason, bound = _reason(figure, held[figure]), figure.replace(" ", "_")
    if not reason:
        return [check] if check else []
    wanted = is_set(gates, bound)
    if check is None:
        return [open_check(f"{figure}{suffix}", getattr(gates, bound), reason)] if wanted else []
    verdict = "inconclusive" if wanted else "not judged"
    return [check.model_copy(update={"verdict": verdict, "note": f"not interleaved; {reason}"})]


def _cold_start(base: Case, candidate: Case, gates: Gates, suffix: str) -> Check | None:
    if not (base.cold_start_ns and candidate.cold_start_ns):
        return None
    starts = [np.array(one.first_answer) for one in (base.cold_start_ns, candidate.cold_start_ns)]
    middles = [float(np.median(one)) for one in starts]
    seen = Seen(unpaired(*starts), gates.cold_start, middles[0], middles[1], "ns")
    check = ratio_check(f"{COLD_START}{suffix}", seen, "not interleaved")
    if check.verdict != "regression":
        return check
    return check.model_copy(update={"verdict": "inconclusive", "note": f"{check.note}; {UNSURE}"})


def _memory(base: Case, candidate: Case, gates: Gates, suffix: str) -> Check | None:
    if not (base.memory and candidate.memory):
        return None
    ours, theirs = base.memory.peak_bytes, candidate.memory.peak_bytes
    exact = Estimate(theirs / ours, theirs / ours, theirs / ours)
    return ratio_check(f"{MEMORY}{suffix}", Seen(exact, gates.memory, ours, theirs, "bytes"), "peak")


def unpaired(base: NDArray[np.float64], candidate: NDArray[np.float64]) -> Estimate:
    """The candidate's figures [m] over the base's [n], all above 0: Hodges and Lehmann's estimate and interval of their
    ratio, at the same level as the intervals from turns (1 - 2 ALPHA). Fewer than six figures a side have no interval.
    """
    differences = np.sort(np.log(candidate[:, None] / base[None]), axis=None)
    ratio = float(np.exp(np.median(differences)))
    if min(len(base), len(candidate)) < FEWEST:
        return Estimate(ratio, UNKNOWN.low, UNKNOWN.high)
    skipped = left_out_each_end(len(base), len(candidate), ALPHA)
    low, high = np.exp(differences[[skipped, len(differences) - 1 - skipped]])
    return Estimate(ratio, min(float(low), ratio), max(float(high), ratio))


def left_out_each_end(first: int, second: int, alpha: float) -> int:
    """The largest k with P(U <= k) <= alpha, U being Mann and Whitney's of samples of these sizes from one distribution;
    -1 where there is none. So many differences lie outside the interval at each end."""
    if max(first, second) > _EXACT:
        middle, spread = first * second / 2, math.sqrt(first * second * (first + second + 1) / 12)
        return math.floor(middle - NormalDist().inv_cdf(1 - alpha) * spread - 0.5)
    ways = [1] + [0] * (
        first * second
    )  # how many orders have U = 0, 1, …: Gauss's binomial coefficient, factor by factor
    for size in range(1, second + 1):
        for u in range(len(ways) - 1, first + size - 1, -1):
            ways[u] -= ways[u - first - size]
        for u in range(size, len(ways)):
            ways[u] += ways[u - size]
    most = alpha * math.comb(first + second, first)
    return sum(total <= most for total in accumulate(ways)) - 1
