"""How many threads a call and how many calls at once: from what was measured of the bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from toolchain.runtime import manifest
from toolchain.runtime.bundle import Bundle


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def choose(bundle: Bundle, provider: str, cores: int) -> tuple[int, int]:
    """(threads of a session, calls at once) with the most pictures a second by the bundle's latencies.

    A measured p50 with t threads stands for (cores // t) / p50; one thread when nothing of `provider` with the
    fused file and batch 1 was measured. Equal rates take fewer threads.
    """
    rated = [(-(cores // t) / p50, t) for t, p50 in _measured(bundle, provider) if t <= cores]
    threads = min(rated)[1] if rated else 1
    return threads, max(1, cores // threads)


def _measured(bundle: Bundle, provider: str) -> Iterator[tuple[int, float]]:
    """(threads, p50 in ns) of the rows that can be used; measured.json is no part of the identity, so it may lack any."""
    try:
        content: Any = json.loads((bundle.folder / manifest.MEASURED).read_bytes())
        rows = content["variant"]["latency"][provider]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or (row.get("file"), row.get("batch")) != ("fused", 1):
            continue
        threads, p50 = row.get("threads", 1), row.get("p50_ns")
        if isinstance(threads, int) and threads > 0 and isinstance(p50, int | float) and p50 > 0:
            yield threads, float(p50)
