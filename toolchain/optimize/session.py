"""How the chosen file is timed once more, and with how many threads: small networks are often slower with more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolchain.measure.settings import Measure
from toolchain.optimize.points import TIE
from toolchain.recipe import Recipe

_AGAIN = 1  # the take of what has been chosen: of many points the one that was timed luckiest looks best


def counts(most: int) -> tuple[int, ...]:
    """The thread counts to time for a device that has `most` to give: all, which decide, then the powers of two below."""
    return (most, *reversed([2**power for power in range(most.bit_length()) if 2**power < most]))


def seconds(most: int, once: float) -> float:
    """What timing with each of the counts takes at most, if timing with all threads takes `once`."""
    return sum(once * most / count for count in counts(most))


def fastest(milliseconds: Mapping[int, float]) -> int:
    """The fewest threads whose latency is within the tie of the least."""
    least = min(milliseconds.values())
    return min(threads for threads, ms in milliseconds.items() if ms <= TIE * least)


def timed_anew(recipe: Recipe, threads: Sequence[int]) -> Measure:
    """How what has been chosen is timed once more."""
    again = {"threads": tuple(threads), "take": recipe.measure.take + _AGAIN}
    return recipe.measure.model_copy(update=again)
