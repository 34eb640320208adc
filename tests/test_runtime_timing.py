"""The timing loop: who is called when, what is kept, and what the loop itself costs."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from time import perf_counter_ns

import numpy as np
import pytest

from toolchain.runtime.timing import alternate, interleave


def recorder(names: str) -> tuple[list[str], dict[str, Callable[[], object]]]:
    log: list[str] = []
    return log, {name: (lambda name=name: log.append(name)) for name in names}


def busy(nanoseconds: int) -> Callable[[], None]:
    def wait() -> None:
        end = perf_counter_ns() + nanoseconds
        while perf_counter_ns() < end:
            pass

    return wait


def test_blocks_are_whole_and_each_round_has_every_side_once() -> None:
    log, sides = recorder("abc")
    times = interleave(sides, blocks=20, calls=6, drop=2)
    assert {name: found.shape for name, found in times.items()} == dict.fromkeys("abc", (20, 4))
    assert all(found.dtype == np.int64 for found in times.values())
    assert log[:18] == list("aaaaaabbbbbbcccccc")  # the unrecorded block of each
    timed = log[18:]
    blocks = [timed[at : at + 6] for at in range(0, len(timed), 6)]
    assert all(len(set(block)) == 1 for block in blocks)
    rounds = ["".join(block[0] for block in blocks[at : at + 3]) for at in range(0, len(blocks), 3)]
    assert len(rounds) == 20
    assert all(sorted(found) == list("abc") for found in rounds)
    assert len(set(rounds)) > 3  # in random order


def test_the_order_depends_on_the_seed_only() -> None:
    def order(seed: int) -> list[str]:
        log, sides = recorder("abcd")
        interleave(sides, blocks=10, calls=2, drop=0, seed=seed)
        return log

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_first_calls_of_a_block_are_dropped() -> None:
    """A side that is slow right after another one ran: the slow calls are not in the figure."""
    last = [""]

    def side(name: str) -> Callable[[], None]:
        fast, slow = busy(20_000), busy(2_000_000)

        def call() -> None:
            (fast if last[0] == name else slow)()
            last[0] = name

        return call

    sides = {"a": side("a"), "b": side("b")}
    kept = interleave(sides, blocks=6, calls=5, drop=1)
    assert np.median(kept["a"]) < 1_000_000
    switching = alternate(sides, calls=12, drop=1)
    assert np.median(switching["a"]) > 1_000_000 or np.median(switching["b"]) > 1_000_000


def test_alternating_calls_change_sides_all_the_time() -> None:
    log, sides = recorder("ab")
    times = alternate(sides, calls=50, drop=3)
    assert {name: found.shape for name, found in times.items()} == {"a": (50,), "b": (50,)}
    assert Counter(log) == {"a": 53, "b": 53}
    assert max(len(list(run)) for _, run in groupby(log)) <= 2
    pairs = [log[at] + log[at + 1] for at in range(0, len(log), 2)]
    assert set(pairs) == {"ab", "ba"}


def test_times_are_those_of_the_calls() -> None:
    times = interleave({"short": busy(100_000), "long": busy(400_000)}, blocks=4, calls=6, drop=1)
    assert times["short"].min() >= 100_000
    assert times["long"].min() >= 400_000
    assert np.median(times["short"]) < np.median(times["long"])


def test_the_loop_itself_costs_next_to_nothing() -> None:
    times = interleave({"nothing": lambda: None}, blocks=40, calls=105, drop=5)["nothing"]
    assert np.median(times) <= 2_000


def test_garbage_is_not_collected_within_a_block_and_afterwards_again() -> None:
    states: list[bool] = []
    interleave({"a": lambda: states.append(gc.isenabled())}, blocks=2, calls=3, drop=0)
    assert not any(states)
    assert gc.isenabled()

    def fail() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interleave({"a": fail}, blocks=2, calls=3, drop=0)
    assert gc.isenabled()
    gc.disable()
    try:
        alternate({"a": lambda: None}, calls=3)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_progress_counts_blocks_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    _, sides = recorder("ab")
    interleave(sides, blocks=3, calls=2, drop=0, progress=lambda done, of: told.append((done, of)))
    assert told == [(n, 6) for n in range(1, 7)]
    told.clear()
    alternate(sides, calls=20, progress=lambda done, of: told.append((done, of)))
    assert told == [(10, 20), (20, 20)]


@pytest.mark.parametrize("wrong", [{"blocks": 0}, {"calls": 5, "drop": 5}, {"drop": -1}])
def test_counts_that_leave_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="nothing to time"):
        interleave({"a": lambda: None}, **wrong)
    with pytest.raises(ValueError, match="nothing to time"):
        interleave({})
    with pytest.raises(ValueError, match="nothing to time"):
        alternate({}, calls=3)
