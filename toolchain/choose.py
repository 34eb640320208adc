"""Which file ships: a pure function of what was measured on val.

The chosen file is the fastest that passes every gate. A file not shown to be faster than fp32 is never
chosen over it. Latencies within 5 % count as equal; then accuracy, size and name decide, so that noise
does not change what ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolchain.recipe import Gates
from toolchain.stats import Interval, accuracy_difference, balanced, ratio_of_medians, recalls, top1

BASE = "fp32"
_TIE = 1.05


@dataclass(frozen=True)
class Candidate:
    """One file as measured: val probabilities [n, C], raw latency [blocks, calls] ns of the plain file."""

    name: str
    bytes: int
    probabilities: NDArray[np.float32]
    latency: NDArray[np.int64]
    parity: float | None = None


@dataclass(frozen=True)
class Exam:
    """The val split: class indices [n], a group for each picture, class names."""

    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """One promise and what was measured. `unit` is that of bound and value; `at_most` tells the direction."""

    name: str
    bound: float
    value: float
    unit: str
    at_most: bool
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value keeps the bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@dataclass(frozen=True)
class Verdict:
    """What became of one candidate. `drop` (points, against fp32) and `speedup` are None for fp32 itself."""

    name: str
    status: str
    reason: str
    gates: tuple[Gate, ...]
    drop: Interval | None
    speedup: Interval | None


@dataclass(frozen=True)
class Choice:
    """The chosen name (None when nothing passes) and a verdict for each candidate."""

    chosen: str | None
    verdicts: tuple[Verdict, ...]

    def verdict(self, name: str) -> Verdict:
        """The verdict on one candidate; KeyError when there is none of that name."""
        return {verdict.name: verdict for verdict in self.verdicts}[name]


def choose(candidates: Sequence[Candidate], exam: Exam, gates: Gates, prefer: str | None = None) -> Choice:
    """Judge every candidate and pick one. One of them must be named "fp32".

    prefer: the name to take if it passes, whatever else is faster: the choice of a search among more than these.
    """
    base = next(candidate for candidate in candidates if candidate.name == BASE)
    judged = {c.name: _judge(c, base, exam, gates) for c in candidates}
    fit = [c for c in candidates if judged[c.name].status == "passed"]
    preferred = next((c.name for c in fit if c.name == prefer), None)
    chosen = preferred or _pick(fit, exam, gates)
    reason = "passes every gate; chosen by the search" if preferred else _reason(fit, chosen)
    verdicts = tuple(
        _chosen(judged[c.name], reason) if c.name == chosen else judged[c.name] for c in candidates
    )
    return Choice(chosen, verdicts)


def metric(name: str, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The gated metric, as a share of 1."""
    return balanced(probabilities, labels) if name == "balanced" else top1(probabilities, labels)


def _reason(fit: Sequence[Candidate], chosen: str | None) -> str:
    """Why the picked file is picked; a reader may see a smaller figure beside another one."""
    quickest = min(fit, key=lambda c: float(np.median(c.latency)), default=None)
    if quickest is None or quickest.name == chosen:
        return "fastest file that passes every gate"
    return f"within {100 * (_TIE - 1):.0f} % of the fastest, {quickest.name}; then accuracy and size decide"


def _pick(fit: Sequence[Candidate], exam: Exam, gates: Gates) -> str | None:
    if not fit:
        return None
    medians = {c.name: float(np.median(c.latency)) for c in fit}
    tied = [c for c in fit if medians[c.name] <= _TIE * min(medians.values())]
    best = min(tied, key=lambda c: (-metric(gates.metric, c.probabilities, exam.labels), c.bytes, c.name))
    return best.name


def _chosen(verdict: Verdict, reason: str) -> Verdict:
    return Verdict(verdict.name, "chosen", reason, verdict.gates, verdict.drop, verdict.speedup)


def _judge(candidate: Candidate, base: Candidate, exam: Exam, gates: Gates) -> Verdict:
    drop = speedup = None
    if candidate.name != BASE:
        drop = accuracy_difference(
            base.probabilities, candidate.probabilities, exam.labels, groups=exam.groups, metric=gates.metric
        )
        speedup = ratio_of_medians(base.latency, candidate.latency)
    results = tuple(_gates(candidate, drop, exam, gates))
    failed = [gate.name for gate in results if not gate.passed]
    if failed:
        status, reason = "failed", f"fails {', '.join(failed)}"
    elif speedup is not None and speedup.low <= 1:
        status = "slower"
        reason = f"not shown to be faster than fp32: {speedup.value:.2f} times [{speedup.low:.2f}, {speedup.high:.2f}]"
    else:
        status, reason = "passed", "passes every gate"
    return Verdict(candidate.name, status, reason, results, drop, speedup)


def _gates(candidate: Candidate, drop: Interval | None, exam: Exam, gates: Gates) -> list[Gate]:
    """Every gate the recipe sets, measured on one candidate."""
    found = []
    p, labels = candidate.probabilities, exam.labels
    worst = gates.max_drop_worst
    if drop is not None and gates.max_drop is not None:
        worst = gates.max_drop + 2 if worst is None else worst
        found.append(Gate("max_drop", gates.max_drop, drop.value, "points", True, f"{gates.metric}, paired"))
    if drop is not None and worst is not None:
        found.append(Gate("max_drop_worst", worst, drop.high, "points", True, "bad end of the 95 % interval"))
    if gates.min_top1 is not None:
        found.append(Gate("min_top1", gates.min_top1, 100 * top1(p, labels), "%", False))
    if gates.min_balanced is not None:
        found.append(Gate("min_balanced", gates.min_balanced, 100 * balanced(p, labels), "%", False))
    if gates.min_recall is not None:
        found += _recall_gates(candidate, exam, gates.min_recall)
    if gates.max_latency_ms is not None:
        median = float(np.median(candidate.latency)) / 1e6
        found.append(Gate("max_latency_ms", gates.max_latency_ms, median, "ms", True))
    if gates.max_megabytes is not None:
        found.append(Gate("max_megabytes", gates.max_megabytes, candidate.bytes / 1e6, "MB", True))
    if candidate.parity is not None:
        found.append(
            Gate("parity", gates.parity, candidate.parity, "1", True, "largest difference of probabilities")
        )
    return found


def _recall_gates(candidate: Candidate, exam: Exam, floor: float | dict[str, float]) -> list[Gate]:
    """A floor for each class that val has pictures of."""
    found = recalls(candidate.probabilities, exam.labels)
    floors = floor if isinstance(floor, dict) else dict.fromkeys(exam.classes, floor)
    return [
        Gate(f"min_recall.{name}", floors[name], 100 * float(found[k]), "%", False)
        for k, name in enumerate(exam.classes)
        if name in floors and np.isfinite(found[k])
    ]
