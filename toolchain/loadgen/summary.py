"""What LoadGen's own summary says: verdict, percentiles, early stopping. It is read, never recomputed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolchain.errors import ModelError, RecordError

SUMMARY, DETAIL, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json"
_FIELD = re.compile(r"^\s*(?P<name>[^:*]+?)\s*:\s*(?P<value>\S.*)$")
_PERCENTILE = re.compile(r"^(?P<q>[\d.]+) percentile latency \(ns\)$")
_ADVICE = re.compile(r"^Recommendations:\n(?P<lines>(?: \* .*\n)+)", re.MULTILINE)
_ESTIMATE = re.compile(r"Early stopping (?P<q>[\d.]+)th percentile estimate: (?P<ns>\d+)")


@dataclass(frozen=True)
class Summary:
    """verdict: "VALID" or "INVALID"; satisfied: LoadGen's own conditions; result: the scenario's metric by LoadGen's
    name of it; percentiles_ns: by "p50"; early_stopping_ns: LoadGen's conservative estimates, by "p90"; advice: what
    LoadGen recommends after a test that it calls INVALID."""

    verdict: str
    result: tuple[str, float]
    satisfied: Mapping[str, bool]
    percentiles_ns: Mapping[str, float]
    early_stopping_ns: Mapping[str, float]
    warnings: str
    advice: str = ""


def read_summary(path: Path) -> Summary:
    """Read a performance run's summary. Raises RecordError when it is missing or has no verdict."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise RecordError(f"{path}: LoadGen left no summary ({e.strerror})") from e
    fields = {m["name"]: m["value"].strip() for m in map(_FIELD.match, text.splitlines()) if m}
    if "Result is" not in fields:
        raise RecordError(f"{path}: LoadGen's summary has no verdict; see {DETAIL} beside it")
    satisfied = {
        n.removesuffix(" satisfied"): v == "Yes" for n, v in fields.items() if n.endswith(" satisfied")
    }
    percentiles = {_short(m["q"]): float(v) for n, v in fields.items() if (m := _PERCENTILE.match(n))}
    estimates = {_short(m["q"]): float(m["ns"]) for m in _ESTIMATE.finditer(text)}
    told = [line for line in text.splitlines() if "encountered" in line]
    found = _ADVICE.search(text)
    advice = " ".join(line.removeprefix(" * ") for line in found["lines"].splitlines()) if found else ""
    return Summary(
        fields["Result is"], _result(fields, path), satisfied, percentiles, estimates, " ".join(told), advice
    )


def read_answers(path: Path, total: int, classes: int) -> NDArray[np.float32]:
    """The answers that LoadGen logged in accuracy mode, float32 [total, classes], by sample number.

    Raises RecordError for a log that is no JSON or lacks a sample; ModelError for answers of another size.
    """
    try:
        rows = {int(row["qsl_idx"]): bytes.fromhex(row["data"]) for row in json.loads(path.read_bytes())}
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise RecordError(f"{path}: not an accuracy log of LoadGen ({e})") from e
    if set(rows) != set(range(total)):
        raise RecordError(f"{path}: has {len(rows)} of {total} answers")
    if any(len(data) != 4 * classes for data in rows.values()):
        raise ModelError(f"{path}: answers are not {classes} float32 values each, so they cannot be scored")
    return np.stack([np.frombuffer(rows[index], np.float32) for index in range(total)])


def _result(fields: Mapping[str, str], path: Path) -> tuple[str, float]:
    """The scenario's metric: the line before the verdict, under LoadGen's name."""
    for name, value in fields.items():
        if name.endswith("th percentile latency (ns)") or name in (
            "Samples per second", "Completed samples per second",
        ):  # fmt: skip
            return name, float(value)
    raise RecordError(f"{path}: LoadGen's summary has no result; see {DETAIL} beside it")


def _short(q: str) -> str:
    """ "99.90" is "p999", "50.00" is "p50"."""
    return "p" + f"{float(q):g}".replace(".", "")
