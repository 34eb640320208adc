"""The bench record: what was timed, on what, under which conditions, with every raw sample; and its JSON.

Times are integer nanoseconds, memory is bytes. A record is one JSON object of schema 1; fields that this
reader does not know are left out, fields that are missing or of another type are an error that names them.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from toolchain.runtime import host
from toolchain.runtime.errors import RecordError
from toolchain.runtime.whole import write_whole

SCHEMA = 1
KIND = "bench"
# Every percentile of a record, by its name there.
PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}

# Figures that are divided by or drawn on a logarithmic axis somewhere.
_ABOVE_0 = frozenset(
    {
        "bytes",
        "threads",
        "batch",
        "samples_ns",
        "ns",
        "ci95",
        "throughput_per_s",
        "peak_bytes",
        "steady_bytes",
        "session",
        "first_answer",
        "call",
        "relative",
        "share",
    }
)
_MOST = 2**63
_QUIET = 0.95  # share of the time with a processor

JSON = Any  # what json.dumps takes
T = TypeVar("T")


@dataclass(frozen=True)
class ModelFile:
    """The file that was timed. `path` is its last part only; `bytes` counts its external weights as well."""

    name: str
    path: str
    sha256: str
    bytes: int
    form: Literal["bundle", "onnx"]


@dataclass(frozen=True)
class Input:
    """What went in: numpy's type name, the shape with its batch, and whether it was noise or pictures.

    Of a model with several inputs this is the first; the others are filled with noise of their shapes.
    """

    kind: str
    shape: tuple[int, ...]
    source: Literal["noise", "pictures"]


@dataclass(frozen=True)
class Condition:
    """What a figure holds for. file: "fused" takes uint8 pictures, "plain" is a float file of this toolchain,
    "foreign" any other; options: those of ONNX Runtime that were asked for."""

    provider: str
    options: Mapping[str, str]
    threads: int
    batch: int
    spinning: bool
    file: Literal["fused", "plain", "foreign"]
    input: Input

    @property
    def words(self) -> str:
        """The condition for people: "cpu, 1 thread, batch 1, foreign float32 1x3x224x224 noise"."""
        given = self.input
        parts = [
            self.provider, f"{self.threads} thread{'' if self.threads == 1 else 's'}", f"batch {self.batch}",
            *(["spinning"] if self.spinning else []),
            *(f"{name}={value}" for name, value in sorted(self.options.items())),
            f"{self.file} {given.kind} {'x'.join(map(str, given.shape))} {given.source}",
        ]  # fmt: skip
        return ", ".join(parts)


@dataclass(frozen=True)
class WarmUp:
    """The unrecorded calls before: how many, how long, and whether they ended steady or at their limit."""

    calls: int
    seconds: float
    steady: bool


@dataclass(frozen=True)
class Percentile:
    """A percentile of the samples in ns; its 95 % interval is drawn by block, where somebody drew it."""

    ns: float
    ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Memory:
    """Resident memory of a fresh process: the most it ever had, and what it had after its last call."""

    peak_bytes: int
    steady_bytes: int


@dataclass(frozen=True)
class ColdStart:
    """Of fresh processes: making the session alone, and from starting the process to its first answer.

    call: the median of each one's calls once warm, copies included; older records, and cases that leave copies out, have
    none. relative, share: on one thread of the CPU, their time in units of the reference's that took turns with them, and
    the share of the time in which they had a processor (`runtime.reference`).
    """

    session: tuple[int, ...]
    first_answer: tuple[int, ...]
    call: tuple[int, ...] = ()
    relative: tuple[float, ...] = ()
    share: tuple[float, ...] = ()

    @property
    def busy(self) -> float | None:
        """The typical share, where the machine was busy: caches were emptied too often for `relative` to be compared."""
        share = float(np.median(self.share)) if self.share else 1.0
        return share if share < _QUIET else None


@dataclass(frozen=True)
class Operator:
    """What one operator type took on one provider: its nodes, and its share of the time of all nodes."""

    operator: str
    provider: str
    nodes: int
    share: float


@dataclass(frozen=True)
class Case:
    """One condition and what was measured. samples_ns: [blocks][calls], every call that was timed.

    copies: whether copying to and from the device lies inside the samples; None on the CPU, which has none.
    placement: {provider: nodes}, operators, copies_between (nodes that copy from one provider to another) and
    elsewhere ("name (Operator) on cpu" for each node that did not run on the condition's provider) are those
    of the graph that ran, as ONNX Runtime's own profile shows it. throughput_per_s: pictures.
    """

    condition: Condition
    warm_up: WarmUp
    samples_ns: tuple[tuple[int, ...], ...]
    copies: Literal["included", "excluded"] | None
    percentiles: Mapping[str, Percentile | None]
    throughput_per_s: float
    placement: Mapping[str, int]
    memory: Memory | None
    cold_start_ns: ColdStart | None
    operators: tuple[Operator, ...] = ()
    copies_between: int = 0
    elsewhere: tuple[str, ...] = ()

    @property
    def blocks(self) -> NDArray[np.int64]:
        """The samples as int64 [blocks, calls], in ns."""
        return np.array(self.samples_ns, np.int64)


@dataclass(frozen=True)
class BenchRecord:
    """One model, timed on one machine. host: `runtime.host.facts()` there; started: ISO 8601, UTC;
    toolchain: the version that measured; notes: sentences that a reader of the figures must know."""

    model: ModelFile
    host: Mapping[str, JSON]
    started: str
    toolchain: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, JSON]:
        """The record as plain values; `parse` reads it back."""
        return {"schema": SCHEMA, "kind": KIND, **asdict(self)}


def parse(raw: JSON, where: str) -> BenchRecord:
    """A record from its plain values. Raises RecordError as "where: field …": also for figures that are not
    finite, or not above 0 where they are times, bytes, threads, batches or pictures a second."""
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise RecordError(f"{where}: not a bench record (its field 'kind' must be '{KIND}')")
    if raw.get("schema") != SCHEMA:
        raise RecordError(
            f"{where}: is a record of schema {raw.get('schema')!r}; this toolchain reads {SCHEMA}"
        )
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise RecordError(f"{where}: has half a character (a lone surrogate), which nothing can print") from e
    record: BenchRecord = _read(BenchRecord, raw, where, "")
    try:
        host.fingerprint(record.host)
    except RecordError as e:
        raise RecordError(f"{where}: {e}") from e
    for number, case in enumerate(record.cases):
        lengths = {len(block) for block in case.samples_ns}
        if len(lengths) != 1 or 0 in lengths:
            raise RecordError(
                f"{where}: cases.{number}.samples_ns: must be blocks of one length, of 1 or more"
            )
        if case.cold_start_ns is not None:
            _require_starts(case.cold_start_ns, where, f"cases.{number}.cold_start_ns")
    return record


def _require_starts(cold: ColdStart, where: str, at: str) -> None:
    """Each process has a figure of each kind; what later records have more may be missing."""
    count = len(cold.session)
    _require(count > 0, where, f"{at}.session", "must have at least one value")
    _require(
        len(cold.first_answer) == count,
        where,
        f"{at}.first_answer",
        f"must have {count} values, as session has",
    )
    for name in ("call", "relative", "share"):
        fits = len(getattr(cold, name)) in (0, count)
        _require(fits, where, f"{at}.{name}", f"must have {count} values, as session has, or none")
    _require(
        len(cold.relative) == len(cold.share), where, f"{at}.share", "must have as many values as relative"
    )


def parse_condition(raw: JSON, where: str) -> Condition:
    """A condition from its plain values. Raises RecordError as `parse`."""
    found: Condition = _read(Condition, raw, where, "condition")
    return found


def read(path: Path) -> BenchRecord:
    """Read a record's file. Raises RecordError when it is missing, no JSON, or no record."""
    try:
        raw = json.loads(path.read_bytes(), parse_constant=_no_number)
    except OSError as e:
        raise RecordError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise RecordError(f"{path}: not JSON, or cut short ({e})") from e
    return parse(raw, str(path))


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def canonical(raw: JSON) -> bytes:
    """The bytes that name a record: sorted keys, no spaces, ASCII, no NaN."""
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def keep(raw: JSON, folder: Path) -> Path:
    """Write a record into a folder under its content's name, sha256 of its canonical JSON + ".json".

    Safe for parallel writers: a scratch file is flushed, then renamed; equal records are one file. Raises
    OSError when the folder cannot be written.
    """
    content = canonical(raw)
    path = folder / f"{hashlib.sha256(content).hexdigest()}.json"
    write_whole(path, content)
    return path


def _read(kind: Any, value: JSON, where: str, at: str) -> Any:
    """A plain value as the annotated type `kind`; `at` is the path of field names so far."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_fields(kind, value, where, at)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return _read(kind, value, where, at)
    if origin is Literal:
        _require(value in arguments, where, at, f"must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, where, at)
    if origin is Mapping:
        _require(isinstance(value, dict), where, at, "must be an object")
        return {name: _read(arguments[1], one, where, f"{at}.{name}") for name, one in value.items()}
    return _read_scalar(kind, value, where, at)


def _read_fields(kind: Any, value: JSON, where: str, at: str) -> Any:
    _require(isinstance(value, dict), where, at, "must be an object")
    hints, found = typing.get_type_hints(kind), {}
    for field in fields(kind):
        path = f"{at}.{field.name}".lstrip(".")
        if field.name in value:
            found[field.name] = _read(hints[field.name], value[field.name], where, path)
        else:
            _require(field.default is not MISSING, where, path, "is missing")
    return kind(**found)


def _read_tuple(arguments: Sequence[Any], value: JSON, where: str, at: str) -> tuple[Any, ...]:
    _require(isinstance(value, list | tuple), where, at, "must be a list")
    if arguments[-1] is not Ellipsis:
        _require(len(value) == len(arguments), where, at, f"must have {len(arguments)} values")
    return tuple(_read(arguments[0], one, where, f"{at}.{number}") for number, one in enumerate(value))


def _read_scalar(kind: Any, value: JSON, where: str, at: str) -> Any:
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        fits = True
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    _require(fits, where, at, f"must be {names[kind]}")
    if kind not in (int, float):
        return value
    _require(abs(value) < _MOST, where, at, "must be finite, and smaller than 2^63")
    _require(value >= 0, where, at, "must not be negative")
    name = at.rstrip("0123456789.").rpartition(".")[2]
    _require(value > 0 or name not in _ABOVE_0, where, at, "must be above 0")
    return kind(value)


def _require(fine: bool, where: str, at: str, what: str) -> None:
    if not fine:
        raise RecordError(f"{where}: {at or 'the record'} {what}")
