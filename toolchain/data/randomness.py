"""Random numbers as a pure function of (seed, epoch, position, purpose), for whole batches at once.

Counter-based, with SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators"): no state to carry, so neither worker count nor a resumed start can change a draw.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray

Seeds = NDArray[np.uint64]  # [n], one a sample

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@unique
class Purpose(IntEnum):
    """What a number is drawn for; a new option never changes the draws of the others."""

    CROP = 1
    FLIP = 2
    TURN = 3
    ROTATE = 4
    TRANSLATE = 5
    ZOOM = 6
    COLOUR = 7
    POLICY = 8
    NOISE = 9
    ERASE = 10


def sample_seeds(seed: int, epoch: int, positions: NDArray[np.int64]) -> Seeds:
    """A seed for each position [n] of an epoch's order."""
    start = _mix(_mix(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    return _mix(start + positions.astype(np.uint64) * _GOLDEN)


def uniform(seeds: Seeds, purpose: Purpose, count: int = 1) -> NDArray[np.float64]:
    """[n, count] numbers in [0, 1)."""
    counters = np.uint64(purpose) * np.uint64(1 << 32) + np.arange(1, count + 1, dtype=np.uint64)
    bits = _mix(_mix(seeds)[:, None] ^ (counters * _GOLDEN)[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def symmetric(seeds: Seeds, purpose: Purpose, count: int = 1) -> NDArray[np.float64]:
    """[n, count] numbers in [-1, 1)."""
    return uniform(seeds, purpose, count) * 2 - 1


def _mix(bits: Seeds) -> Seeds:
    with np.errstate(over="ignore"):
        bits = bits + _GOLDEN
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))
