"""The timing loop: several sides, one process, raw nanoseconds. It knows nothing of models or statistics.

A switch from one model to another empties caches, so the length of a block is part of a figure: `interleave`
times each side while it keeps the machine to itself, `alternate` while every call follows another side's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

Side = Callable[[], object]


def interleave(
    sides: Mapping[str, Side],
    *,
    blocks: int = 20,
    calls: int = 30,
    drop: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Time every side in `blocks` rounds; a round has one block of `calls` calls a side, in random order.

    Returns raw nanoseconds a call, int64 [blocks, calls - drop] a side: the first `drop` calls of each block
    are left out, and row i of every side comes from round i, so that rows pair. One unrecorded block a
    side goes before. Garbage is collected between blocks only. `progress(done, of)` counts blocks and is
    called between them. Raises ValueError for counts that leave nothing to time.
    """
    _check(sides, calls - drop, blocks, drop)
    order = np.random.default_rng(seed)
    names = list(sides)
    times = {name: np.empty((blocks, calls - drop), np.int64) for name in names}
    with quiet():
        for name in names:
            time_calls(sides[name], calls)
        for block in range(blocks):
            for turn, index in enumerate(order.permutation(len(names))):
                name = names[index]
                gc.collect(0)
                times[name][block] = time_calls(sides[name], calls)[drop:]
                if progress is not None:
                    progress(block * len(names) + turn + 1, blocks * len(names))
    return times


def alternate(
    sides: Mapping[str, Side],
    *,
    calls: int = 200,
    drop: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Time `calls` calls a side in rounds of one call each, in random order: what a busy device sees.

    Returns raw nanoseconds, int64 [calls] a side, after `drop` unrecorded rounds; element i of every side
    comes from round i. `progress(done, of)` is called every 10 rounds. Raises ValueError as `interleave`.
    """
    _check(sides, calls, 1, drop)
    order = np.random.default_rng(seed)
    names = list(sides)
    times = {name: np.empty(calls, np.int64) for name in names}
    with quiet():
        for index in range(-drop, calls):
            for side in order.permutation(len(names)):
                name = names[side]
                (nanoseconds,) = time_calls(sides[name], 1)
                if index >= 0:
                    times[name][index] = nanoseconds
            if progress is not None and index >= 0 and (index + 1) % 10 == 0:
                progress(index + 1, calls)
    return times


def repeat(side: Side, calls: int, more: Callable[[int], bool]) -> list[list[int]]:
    """Time blocks of `calls` consecutive calls of one side, while `more(blocks so far)`; at least one block.

    Returns raw nanoseconds [blocks][calls]. Warm up first: nothing is left out. Garbage is collected between
    blocks only.
    """
    _check({"": side}, calls, 1, 0)
    blocks: list[list[int]] = []
    with quiet():
        while not blocks or more(len(blocks)):
            gc.collect(0)
            blocks.append(time_calls(side, calls))
    return blocks


def time_calls(side: Side, calls: int) -> list[int]:
    """Nanoseconds of `calls` consecutive calls; each sample carries one reading of the clock."""
    clock = perf_counter_ns
    samples = [0] * calls
    for index in range(calls):
        start = clock()
        side()
        samples[index] = clock() - start
    return samples


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check(sides: Mapping[str, Side], kept: int, blocks: int, drop: int) -> None:
    if not sides or kept < 1 or blocks < 1 or drop < 0:
        raise ValueError(
            f"nothing to time: {len(sides)} sides, {blocks} blocks, {kept} calls kept, {drop} dropped"
        )
