"""From the records of a folder to trends: one figure of one model, under one condition, on one kind of machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from toolchain.errors import RecordError
from toolchain.history.changes import Change, changes
from toolchain.history.folder import Folder, Kept
from toolchain.record import JSON
from toolchain.runtime import bench_record, host
from toolchain.runtime.bench_record import BenchRecord, Case

Unit = Literal["ns", "bytes", "ratio", "per_s"]
LATENCY, RATIO, COLD_START, MEMORY = "median latency", "candidate / base", "cold start", "peak memory"
TOP1 = "top-1"
RELATIVE = "latency in units of the reference"  # what else the machine did is not in it
_ORDER = (
    LATENCY,
    RELATIVE,
    RATIO,
    COLD_START,
    MEMORY,
)  # LoadGen's figures, by its own names, come after these


@dataclass(frozen=True)
class Point:
    """One record's figure. started: ISO 8601; low, high: its interval, where there is one; about: what else a
    reader may want to know of this record; file: its name in the folder."""

    started: str
    value: float
    low: float | None
    high: float | None
    file: str
    about: str


@dataclass(frozen=True)
class Trend:
    """A series in order of time, with the changes of its level."""

    machine: str
    model: str
    condition: str
    figure: str
    unit: Unit
    points: tuple[Point, ...]
    changes: tuple[Change, ...]

    @property
    def more_is_better(self) -> bool:
        """Whether a higher figure is the better one: an accuracy, or samples a second."""
        return self.unit == "per_s" or self.figure == TOP1


@dataclass(frozen=True)
class History:
    """All trends; damaged: a sentence for each file that could not be read; left_out: how many sound records
    are not drawn, by kind, with the reason where others of the kind are: "loadgen (INVALID)"."""

    trends: tuple[Trend, ...]
    records: int
    damaged: tuple[str, ...]
    left_out: Mapping[str, int]

    def as_json(self) -> dict[str, JSON]:
        """Everything as plain values."""
        return {"schema": 1, "kind": "history", **asdict(self)}


_Key = tuple[str, str, str, str, Unit]
_UNREADABLE = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError)


class _NoFigureError(Exception):
    """A sound record has nothing to draw; the kind, and why."""


def history(folder: Folder) -> History:
    """Sort records into trends; machines, models and conditions never mix.

    A record that is not what its kind asks for counts as damaged, and the rest is used all the same.
    """
    series: dict[_Key, list[Point]] = {}
    damaged, other, used = list(folder.damaged), dict[str, int](), 0
    for kept in folder.records:
        kind = str(kept.raw["kind"])
        try:
            found = [(key, _drawable(point)) for key, point in _READERS.get(kind, _other)(kept)]
        except _NoFigureError as reason:
            other[str(reason)] = other.get(str(reason), 0) + 1
            continue
        except RecordError as error:
            damaged.append(str(error))
            continue
        used += 1
        for key, point in found:
            series.setdefault(key, []).append(point)
    ordered = sorted(series, key=lambda key: (*key[:3], *_place(key[3]), key[4]))
    return History(tuple(_trend(key, series[key]) for key in ordered), used, tuple(damaged), other)


def _place(figure: str) -> tuple[int, str]:
    return (_ORDER.index(figure) if figure in _ORDER else len(_ORDER), figure)


def _drawable(point: Point) -> Point:
    """The point, when it can be drawn and its logarithm taken. Raises RecordError."""
    ends = [end for end in (point.low, point.high) if end is not None]
    if not (math.isfinite(point.value) and point.value > 0 and all(map(math.isfinite, ends))):
        raise RecordError(f"{point.file}: has a figure that is not finite and above nought ({point.value})")
    return point


def _trend(key: _Key, points: Sequence[Point]) -> Trend:
    machine, model, condition, figure, unit = key
    ordered = tuple(sorted(points, key=lambda point: (point.started, point.file)))
    return Trend(machine, model, condition, figure, unit, ordered, changes([p.value for p in ordered]))


def _bench(kept: Kept) -> Iterator[tuple[_Key, Point]]:
    record = bench_record.parse(kept.raw, kept.path.name)
    machine = host.fingerprint(record.host)
    for case in record.cases:
        for figure, unit, value, low, high in _figures(case):
            # The reference runs on onnxruntime too: what another version of it gains or loses would cancel.
            version = f", {host.onnxruntime(record.host)}" if figure == RELATIVE else ""
            yield (
                (machine, record.model.name, _words(case) + version, figure, unit),
                Point(record.started, value, low, high, kept.path.name, _about(record)),
            )


def _figures(case: Case) -> Iterator[tuple[str, Unit, float, float | None, float | None]]:
    p50 = case.percentiles.get("p50")
    low, high = p50.ci95 if p50 and p50.ci95 else (None, None)
    yield LATENCY, "ns", p50.ns if p50 else float(np.median(case.blocks)), low, high
    if case.cold_start_ns and case.cold_start_ns.relative and case.cold_start_ns.busy is None:
        yield RELATIVE, "ratio", float(np.median(case.cold_start_ns.relative)), None, None
    if case.cold_start_ns and case.cold_start_ns.first_answer:
        yield COLD_START, "ns", float(np.median(case.cold_start_ns.first_answer)), None, None
    if case.memory and case.memory.peak_bytes > 0:
        yield MEMORY, "bytes", float(case.memory.peak_bytes), None, None


def _words(case: Case) -> str:
    return case.condition.words + (f", copies {case.copies}" if case.copies else "")


def _about(record: BenchRecord) -> str:
    libraries = record.host.get("libraries")
    versions = [f"{k} {v}" for k, v in libraries.items()] if isinstance(libraries, Mapping) else []
    file = f"{record.model.path} {record.model.sha256[:8]}"
    return ", ".join([file, f"toolchain {record.toolchain}", *versions])


def _compare(kept: Kept) -> Iterator[tuple[_Key, Point]]:
    """The ratio of a comparison, which was interleaved and so does not drift with the machine."""
    raw, name = kept.raw, kept.path.name
    try:
        if raw["schema"] != 1:
            raise ValueError("schema must be 1")
        if raw["method"] != "interleaved":
            raise _NoFigureError("compare (not interleaved)")
        condition = bench_record.parse_condition(raw["condition"], name)
        base, candidate = raw["base"]["name"], raw["candidate"]
        latency = next((c for c in raw["checks"] if c["name"] == "latency"), None)
        key: _Key = (
            _machine(raw["host"], name),
            str(candidate["name"]),
            f"{condition.words}, against {base}",
            RATIO,
            "ratio",
        )
        about = (
            f"{candidate['path']} {candidate['sha256'][:8]}, toolchain {raw['toolchain']}, {raw['verdict']}"
        )
        if latency is None or latency["value"] is None:
            raise _NoFigureError("compare (no latency)")
        low, high = (None if latency[end] is None else float(latency[end]) for end in ("low", "high"))
        yield key, Point(str(raw["started"]), float(latency["value"]), low, high, name, about)
    except _UNREADABLE as error:
        raise RecordError(f"{name}: no readable comparison ({type(error).__name__}: {error})") from error


def _loadgen(kept: Kept) -> Iterator[tuple[_Key, Point]]:
    """LoadGen's own result, when it calls it VALID, or the top-1 of an accuracy test."""
    raw, name = kept.raw, kept.path.name
    try:
        if raw["schema"] != 1 or raw["size"] not in ("mlperf", "shortened"):
            raise ValueError("schema must be 1, size mlperf or shortened")
        condition = bench_record.parse_condition(raw["condition"], name)
        model, summary = raw["model"], raw["summary"]
        where = (
            _machine(raw["host"], name),
            _text(model["name"]),
            f"{condition.words}, LoadGen {_text(raw['load']['scenario'])}, {raw['size']}",
        )
        figure, unit, value, low, high = _top1(raw["accuracy"]) if summary is None else _result(summary)
        where = (*where[:2], where[2] + _load(raw, figure))
        verdict = "accuracy" if summary is None else "VALID"
        about = (
            f"{_text(model['path'])} {_text(model['sha256'])[:8]}, toolchain {_text(raw['toolchain'])}, "
            f"LoadGen {_text(raw['loadgen'])}, {verdict}"
        )
        yield (*where, figure, unit), Point(_text(raw["started"]), value, low, high, name, about)
    except _UNREADABLE as error:
        raise RecordError(f"{name}: no readable LoadGen test ({type(error).__name__}: {error})") from error


def _load(raw: Mapping[str, JSON], figure: str) -> str:
    """What the load, or the pictures, of a test were, where that is in its figure. Raises _NoFigureError for a server
    test whose load was half of what a probe said: each has another."""
    if figure == TOP1:
        return f", {int(_number(raw['accuracy']['pictures']))} pictures"
    if raw["load"]["scenario"] != "server":
        return ""
    if raw["load"]["target_qps"] is None or (
        raw["load"]["target_latency_ms"] is None and raw["size"] != "mlperf"
    ):
        raise _NoFigureError("loadgen (server, of no load or bound that was asked for)")
    bound = _number(raw["settings"]["server_target_latency_ns"]) / 1e6
    return f", {_number(raw['load']['target_qps']):g} queries a second within {bound:g} ms"


_Figure = tuple[str, Unit, float, float | None, float | None]


def _result(summary: Mapping[str, JSON]) -> _Figure:
    """The scenario's metric by LoadGen's name. Raises _NoFigureError where LoadGen calls it INVALID."""
    if summary["verdict"] == "INVALID":
        raise _NoFigureError("loadgen (INVALID)")
    if summary["verdict"] != "VALID":
        raise ValueError(f"verdict must be VALID or INVALID, not {summary['verdict']!r}")
    name, value = summary["result"]
    unit: Unit = "ns" if _text(name).endswith("(ns)") else "per_s"
    return name.removesuffix("(ns)").rstrip(), unit, _number(value), None, None


def _top1(accuracy: Mapping[str, JSON] | None) -> _Figure:
    """Top-1 (0..1) with its interval. Raises _NoFigureError where none was scored, and for 0: it has no logarithm."""
    if accuracy is None:
        raise _NoFigureError("loadgen (no accuracy)")
    low, high = map(_number, accuracy["ci95"])
    top1 = _number(accuracy["top1"])
    if not 0 <= top1 <= 1:
        raise ValueError(f"top1 must be from 0 to 1, not {top1}")
    if top1 == 0:
        raise _NoFigureError("loadgen (top-1 of 0)")
    return TOP1, "ratio", top1, low, high


def _text(value: JSON) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a text, not {value!r}")
    return value


def _number(value: JSON) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"must be a number, not {value!r}")
    return float(value)


def _other(kept: Kept) -> Iterator[tuple[_Key, Point]]:
    raise _NoFigureError(str(kept.raw["kind"]))


def _machine(facts: Mapping[str, JSON], name: str) -> str:
    try:
        return host.fingerprint(facts)
    except RecordError as error:
        raise RecordError(f"{name}: {error}") from error


_READERS = {"bench": _bench, "compare": _compare, "loadgen": _loadgen}
