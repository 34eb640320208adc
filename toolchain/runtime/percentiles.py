"""The one rule for which percentiles a number of samples carries; `toolchain.stats` takes it from here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def percentile(samples: NDArray[np.floating[Any]] | NDArray[np.integer[Any]], q: float) -> float | None:
    """Quantile `q` (0 < q < 1), or None when fewer than ten samples are expected beyond it.

    p50 needs 20 samples, p90 100, p99 1,000: a p99 of 500 runs is its fifth-worst run, not a percentile.
    """
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
    if np.size(samples) < round(10 / min(q, 1 - q)):
        return None
    return float(np.quantile(samples, q))
