"""Where each node of the graph that runs was placed, and how long it took: ONNX Runtime's own profile.

Profiling slows a run (by about a quarter for a small network), so figures of a trace are shares, and compared
only with figures under profiling. Times are microseconds in the profile's file, nanoseconds here. On a GPU they
are those of launching the kernels: the profile does not wait for them.
Format: https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from numpy.typing import NDArray

from toolchain.runtime import providers
from toolchain.runtime.bench_record import Operator
from toolchain.runtime.errors import HostError, ModelError
from toolchain.runtime.session import Session

_KERNEL = "_kernel_time"
_COPIES = frozenset({"MemcpyFromHost", "MemcpyToHost"})
# What shapes, indices and conditions are counted in; anything else is what the model computes with.
_INDICES = frozenset({"int32", "int64", "bool"})
# So many other values are scales and sizes at most, and no feature map.
_FEW = 64
OPTIMIZED = "optimized.onnx"
Center = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class TracedNode:
    """One node of the graph that ran: its name, or "Operator_number" where it has none; the median of its runs.

    values: how many numbers it puts out at most, integers of 32 and 64 bits and truth values aside.
    """

    name: str
    operator: str
    provider: str
    ns: float
    values: int = 0


@dataclass(frozen=True)
class Trace:
    """The nodes in order of their first run, and the whole runs in ns (dispatch between the nodes included)."""

    nodes: tuple[TracedNode, ...]
    runs_ns: tuple[int, ...]

    @property
    def placement(self) -> dict[str, int]:
        """{provider: nodes}."""
        found: dict[str, int] = {}
        for node in self.nodes:
            found[node.provider] = found.get(node.provider, 0) + 1
        return found

    @property
    def copies_between(self) -> int:
        """Nodes that copy a tensor from one provider's memory into another's."""
        return sum(node.operator in _COPIES for node in self.nodes)

    def elsewhere(self, provider: str) -> tuple[str, ...]:
        """ "name (Operator) on PROVIDER" for each node that ran on another provider than this one."""
        return tuple(_words(node) for node in self.nodes if node.provider != provider)

    def strayed(self, provider: str) -> tuple[str, ...]:
        """Those of `elsewhere` that work on data, by what they put out: an operator that shapes are reckoned with, such
        as Add or Concat, may as well work on a feature map."""
        away = (node for node in self.nodes if node.provider != provider)
        return tuple(_words(node) for node in away if node.values > _FEW)

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Operator types on each provider, the one that takes most of the time first."""
        total = sum(node.ns for node in self.nodes) or 1.0
        sums: dict[tuple[str, str], tuple[int, float]] = {}
        for node in self.nodes:
            count, time = sums.get((node.operator, node.provider), (0, 0.0))
            sums[node.operator, node.provider] = (count + 1, time + node.ns)
        rows = [Operator(o, p, count, round(time / total, 4)) for (o, p), (count, time) in sums.items()]
        return tuple(sorted(rows, key=lambda row: (-row.share, row.operator)))


class TracedSession(Session):
    """A session that writes the graph it runs, and a profile of its runs, into `folder`.

    Takes what Session takes. Nodes compiled into one kernel by a provider appear as one node.
    """

    def __init__(self, model: Path, folder: Path, **settings: Any) -> None:
        self._folder = folder
        super().__init__(model, **settings)

    def _adjust(self, settings: Any) -> None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(self._folder / "profile")
        settings.optimized_model_filepath = str(self._folder / OPTIMIZED)

    def trace(self, feed: Mapping[str, NDArray[Any]], runs: int, drop: int = 3) -> Trace:
        """Answer `drop + runs` times, end profiling, and return what the last `runs` took. Can be called once."""
        for _ in range(drop + runs):
            self.run(feed)
        return self.finish(drop)

    def finish(self, drop: int, center: Center = median) -> Trace:
        """End profiling and return the trace of all runs so far but the first `drop`. Can be called once."""
        return read(Path(self._session.end_profiling()), drop, center)


def trace(model: Path, feed: Mapping[str, NDArray[Any]], runs: int = 10, **settings: Any) -> Trace:
    """Trace a model with Session's settings in a scratch folder.

    Raises as Session does, HostError when the folder cannot be written, ModelError for a profile cut short.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            return TracedSession(model, Path(folder), **settings).trace(feed, runs)
    except OSError as e:
        raise HostError(f"{model}: its profile cannot be kept ({e.strerror or e})") from e


def read(profile: Path, drop: int, center: Center = median) -> Trace:
    """The trace in a profile of ONNX Runtime, its first `drop` runs left out; `center` makes one of a node's times.

    Raises ModelError for a file that holds no run of a node.
    """
    try:
        events = json.loads(profile.read_bytes())
        runs = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: int(e["ts"]))
        begin = runs[drop]["ts"]
        kernels = [e for e in events if e.get("cat") == "Node" and str(e["name"]).endswith(_KERNEL)]
        nodes = _nodes([e for e in kernels if e["ts"] >= begin], center)
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise ModelError(f"{profile.name}: not a profile of onnxruntime with runs in it ({e!r})") from e
    return Trace(nodes, tuple(1000 * int(e["dur"]) for e in runs[drop:]))


def _words(node: TracedNode) -> str:
    return f"{node.name} ({node.operator}) on {node.provider}"


def _nodes(events: list[dict[str, Any]], center: Center) -> tuple[TracedNode, ...]:
    times: dict[tuple[str, str], list[int]] = {}
    first: dict[tuple[str, str], dict[str, Any]] = {}
    values: dict[tuple[str, str], int] = {}
    for event in sorted(events, key=lambda e: int(e["ts"])):
        key = (str(event["name"]).removesuffix(_KERNEL), str(event["args"]["node_index"]))
        first.setdefault(key, event["args"])
        times.setdefault(key, []).append(1000 * int(event["dur"]))
        values[key] = max(values.get(key, 0), _values(event["args"].get("output_type_shape", [])))
    return tuple(
        TracedNode(
            key[0],
            str(about["op_name"]),
            providers.short_name(str(about["provider"])),
            float(center(times[key])),
            values[key],
        )
        for key, about in first.items()
    )


def _values(outputs: Sequence[Mapping[str, Sequence[int]]]) -> int:
    """How many numbers are no `_INDICES` in a profile's list of {type: shape}."""
    return sum(prod(shape) for one in outputs for dtype, shape in one.items() if dtype not in _INDICES)
