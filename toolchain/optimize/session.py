"""How many threads the chosen file is fastest with: small networks are often slower with more of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from toolchain.measure import latency
from toolchain.optimize.design import Design
from toolchain.optimize.points import TIE
from toolchain.optimize.trials import Trials


def counts(most: int) -> tuple[int, ...]:
    """The thread counts to time for a device that has `most` to give: the powers of two below it, and all."""
    return tuple(sorted({2**power for power in range(most.bit_length()) if 2**power < most} | {most}))


def timed(trials: Trials, design: Design) -> dict[int, float]:
    """Median ms of a design's plain file by thread count, all interleaved in one process; measured once a host kind."""
    file = trials.file(design)
    settings = trials.recipe.measure.model_copy(update={"threads": counts(trials.asked.threads)})
    entry = trials.pipeline.latencies(
        {design.name: file}, trials.data.val, settings, {trials.asked.provider: [design.name]}
    )
    found = latency.load(entry.folder)
    plain = (one for one in found if one.condition.file == "plain")
    return {one.condition.threads: float(np.median(one.samples)) / 1e6 for one in plain}


def fastest(milliseconds: Mapping[int, float]) -> int:
    """The fewest threads whose latency is within the tie of the least."""
    least = min(milliseconds.values())
    return min(threads for threads, ms in milliseconds.items() if ms <= TIE * least)
