"""Counters of a server in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """What was answered, how long it took, what was swapped. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self._started = time.time()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(_BUCKETS) + 1))
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._swaps: Counter[str] = Counter()
        self.aborted = 0

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` comes from a fixed list, so that clients cannot make new series."""
        self._requests[route, status] += 1
        self._buckets[route][bisect_left(_BUCKETS, seconds)] += 1
        self._sums[route] += seconds

    def swapped(self, result: str) -> None:
        """Count a hot swap: "swapped", "rolled_back" or "refused"."""
        self._swaps[result] += 1

    def text(self, gauges: Mapping[str, float], model: str, version: str) -> str:
        """All series; `gauges` ({name after "toolchain_": value}) are what the server is at now."""
        lines = ["# TYPE toolchain_requests_total counter"]
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'toolchain_requests_total{{route="{route}",status="{status}"}} {count}')
        lines.append("# TYPE toolchain_request_seconds histogram")
        for route in sorted(self._buckets):
            lines += self._histogram(route)
        lines.append("# TYPE toolchain_bundle_changes_total counter")
        for result in ("swapped", "rolled_back", "refused"):
            lines.append(f'toolchain_bundle_changes_total{{result="{result}"}} {self._swaps[result]}')
        lines += ["# TYPE toolchain_aborted_total counter", f"toolchain_aborted_total {self.aborted}"]
        for name, value in gauges.items():
            lines += [f"# TYPE toolchain_{name} gauge", f"toolchain_{name} {value:g}"]
        lines += ["# TYPE toolchain_model_info gauge"]
        lines += [f'toolchain_model_info{{name="{_escaped(model)}",version="{version}"}} 1']
        lines += _process(self._started)
        return "\n".join(lines) + "\n"

    def _histogram(self, route: str) -> list[str]:
        lines, total = [], 0
        for limit, count in zip((*map(str, _BUCKETS), "+Inf"), self._buckets[route], strict=True):
            total += count
            lines.append(f'toolchain_request_seconds_bucket{{route="{route}",le="{limit}"}} {total}')
        lines.append(f'toolchain_request_seconds_sum{{route="{route}"}} {self._sums[route]!r}')
        lines.append(f'toolchain_request_seconds_count{{route="{route}"}} {total}')
        return lines


def _process(started: float) -> list[str]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    values = {
        "resident_memory_bytes gauge": pages * os.sysconf("SC_PAGE_SIZE"),
        "cpu_seconds_total counter": time.process_time(),
        "start_time_seconds gauge": started,
    }
    lines = []
    for key, value in values.items():
        name, kind = key.split()
        lines += [f"# TYPE process_{name} {kind}", f"process_{name} {value!r}"]
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
