"""Two bench records against each other, where the models themselves are no longer at hand.

They were not interleaved: what the machine did differently between the two measurements is in the ratio, and
no interval from inside one process can show it. So the figure says so, only one machine's may be compared, and a latency
beyond its bound is no regression yet, but a reason to compare the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
from numpy.typing import NDArray

from toolchain.compare.gates import Gates
from toolchain.compare.judge import COLD_START, MEMORY, UNKNOWN, Seen, ratio_check
from toolchain.compare.model import Check
from toolchain.compare.sequential import ALPHA, Estimate
from toolchain.compare.unjudged import is_set, open_check
from toolchain.errors import RecordError
from toolchain.runtime import host
from toolchain.runtime.bench_record import BenchRecord, Case

FEWEST = 6  # figures a side (blocks, cold starts) for an interval
_DRAWS = 4000
_SEED = 20150715
ONE_PROCESS = (
    "one process a side, whose luck with memory alone can be that much: compare the models themselves"
)
NOT_INTERLEAVED = (
    "saved records were not interleaved: what the machine did differently between the two is in the ratio, "
    "and the interval, from unpaired blocks, cannot show it"
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
    for one, other in pairs:
        found += _checks(one, other, gates, f" ({_words(one)})" if several else "")
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
        return f"only {min(counts)} a side, {FEWEST} are needed (toolchain bench --cold-starts {FEWEST})"
    return ""


def _checks(base: Case, candidate: Case, gates: Gates, suffix: str) -> list[Check]:
    blocks = [np.median(case.blocks, axis=1) for case in (base, candidate)]
    few = min(map(len, blocks)) < FEWEST
    note = f"not interleaved{f'; fewer than {FEWEST} blocks' if few else ''}"
    medians = [float(np.median(case.blocks)) for case in (base, candidate)]
    seen = Seen(unpaired(*blocks), gates.latency, medians[0], medians[1], "ns")
    held = _held(base, candidate)
    latency = ratio_check(f"latency{suffix}", seen, note)
    if latency.verdict == "regression":
        latency = latency.model_copy(update={"verdict": "inconclusive", "note": f"{note}; {ONE_PROCESS}"})
    return [
        latency,
        *_optional(COLD_START, _cold_start(base, candidate, gates, suffix), held, gates, suffix),
        *_optional(MEMORY, _memory(base, candidate, gates, suffix), held, gates, suffix),
    ]


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
    starts = [
        np.array(case.first_answer, np.float64) for case in (base.cold_start_ns, candidate.cold_start_ns)
    ]
    middles = [float(np.median(one)) for one in starts]
    seen = Seen(unpaired(*starts), gates.cold_start, middles[0], middles[1], "ns")
    return ratio_check(f"{COLD_START}{suffix}", seen, "not interleaved")


def _memory(base: Case, candidate: Case, gates: Gates, suffix: str) -> Check | None:
    if not (base.memory and candidate.memory):
        return None
    ours, theirs = base.memory.peak_bytes, candidate.memory.peak_bytes
    exact = Estimate(theirs / ours, theirs / ours, theirs / ours)
    return ratio_check(f"{MEMORY}{suffix}", Seen(exact, gates.memory, ours, theirs, "bytes"), "peak")


def unpaired(base: NDArray[np.float64], candidate: NDArray[np.float64]) -> Estimate:
    """median(candidate) / median(base) of figures [B] and [B'], with a bootstrap's interval of each side apart.

    At the same level as the intervals from turns (1 - 2 ALPHA). Fewer than six figures a side have no interval.
    """
    ratio = float(np.median(candidate) / np.median(base))
    if min(len(base), len(candidate)) < FEWEST:
        return Estimate(ratio, UNKNOWN.low, UNKNOWN.high)
    generator = np.random.default_rng(_SEED)

    def drawn(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.median(generator.choice(values, (_DRAWS, len(values))), axis=1)
        return found

    low, high = np.quantile(drawn(candidate) / drawn(base), (ALPHA, 1 - ALPHA))
    return Estimate(ratio, min(float(low), ratio), max(float(high), ratio))
