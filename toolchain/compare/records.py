"""Two bench records against each other, where the models themselves are no longer at hand.

They were not interleaved: what the machine did differently between the two measurements is in the ratio, and
no interval from inside one process can show it. So the figure says so, and only one machine's may be compared.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from toolchain.compare.gates import Gates
from toolchain.compare.judge import UNKNOWN, Seen, ratio_check
from toolchain.compare.model import Check
from toolchain.compare.sequential import ALPHA, Estimate
from toolchain.errors import RecordError
from toolchain.runtime import host
from toolchain.runtime.bench_record import BenchRecord, Case

FEWEST_BLOCKS = 6
_DRAWS = 4000
_SEED = 20150715
NOT_INTERLEAVED = (
    "saved records were not interleaved: what the machine did differently between the two is in the ratio, "
    "and the interval, from unpaired blocks, cannot show it"
)


def record_checks(base: BenchRecord, candidate: BenchRecord, gates: Gates) -> tuple[Check, ...]:
    """Latency, cold start and memory for every condition that both records have.

    Raises RecordError for records of different machines, and for records without a common condition.
    """
    first, second = host.fingerprint(base.host), host.fingerprint(candidate.host)
    if first != second:
        raise RecordError(
            f"the records come from different machines ({first}; {second}), whose times cannot be compared; "
            f"compare the models themselves on one of them"
        )
    pairs = [(one, other) for one in base.cases for other in candidate.cases if _same(one, other)]
    if not pairs:
        raise RecordError(
            "the records have no condition in common (provider, threads, batch, spinning, input)"
        )
    several = len(pairs) > 1
    found: list[Check] = []
    for one, other in pairs:
        found += _checks(one, other, gates, f" ({_words(one)})" if several else "")
    return tuple(found)


def _same(one: Case, other: Case) -> bool:
    """Whether two cases may be set against each other: all of the condition but the file's kind."""
    first, second = asdict(one.condition), asdict(other.condition)
    return {**first, "file": ""} == {**second, "file": ""} and one.copies == other.copies


def _words(case: Case) -> str:
    return case.condition.words + (f", copies {case.copies}" if case.copies else "")


def _checks(base: Case, candidate: Case, gates: Gates, suffix: str) -> list[Check]:
    blocks = [np.median(case.blocks, axis=1) for case in (base, candidate)]
    few = min(map(len, blocks)) < FEWEST_BLOCKS
    note = f"not interleaved{f'; fewer than {FEWEST_BLOCKS} blocks' if few else ''}"
    medians = [float(np.median(case.blocks)) for case in (base, candidate)]
    seen = Seen(unpaired(*blocks), gates.latency, medians[0], medians[1], "ns")
    found = [ratio_check(f"latency{suffix}", seen, note)]
    if base.cold_start_ns and candidate.cold_start_ns:
        starts = [
            np.array(case.first_answer, np.float64) for case in (base.cold_start_ns, candidate.cold_start_ns)
        ]
        middles = [float(np.median(one)) for one in starts]
        seen = Seen(unpaired(*starts), gates.cold_start, middles[0], middles[1], "ns")
        found.append(ratio_check(f"cold start{suffix}", seen, "not interleaved"))
    if base.memory and candidate.memory:
        ours, theirs = base.memory.peak_bytes, candidate.memory.peak_bytes
        exact = Estimate(theirs / ours, theirs / ours, theirs / ours)
        found.append(ratio_check(f"memory{suffix}", Seen(exact, gates.memory, ours, theirs, "bytes"), "peak"))
    return found


def unpaired(base: NDArray[np.float64], candidate: NDArray[np.float64]) -> Estimate:
    """median(candidate) / median(base) of figures [B] and [B'], with a bootstrap's interval of each side apart.

    At the same level as the intervals from turns (1 - 2 ALPHA). Fewer than six figures a side have no interval.
    """
    ratio = float(np.median(candidate) / np.median(base))
    if min(len(base), len(candidate)) < FEWEST_BLOCKS:
        return Estimate(ratio, UNKNOWN.low, UNKNOWN.high)
    generator = np.random.default_rng(_SEED)

    def drawn(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.median(generator.choice(values, (_DRAWS, len(values))), axis=1)
        return found

    low, high = np.quantile(drawn(candidate) / drawn(base), (ALPHA, 1 - ALPHA))
    return Estimate(ratio, min(float(low), ratio), max(float(high), ratio))
