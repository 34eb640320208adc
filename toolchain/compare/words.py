"""A comparison in words: the same figures for the terminal, Markdown and JUnit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from toolchain.compare.model import Check, Comparison
from toolchain.report import text

HEAD = ("", "base", "candidate", "candidate / base", "interval", "bound", "verdict")
_VERDICTS = {"pass": "pass", "regression": "REGRESSION", "inconclusive": "inconclusive", "not judged": ""}
_SIGNS = {"pass": "✓", "regression": "✗", "inconclusive": "?"}


class Row(NamedTuple):
    """One check, cell by cell, as HEAD names them."""

    name: str
    base: str
    candidate: str
    value: str
    interval: str
    bound: str
    verdict: str


def row(check: Check) -> Row:
    """A check as cells."""
    return Row(
        check.name, each(check.base, check.each), each(check.candidate, check.each), value(check),
        interval(check), bound(check), _VERDICTS[check.verdict],
    )  # fmt: skip


def each(figure: float | None, unit: str) -> str:
    """What one side has: "2.14 ms", "9.13 MB", "97.52 %"."""
    if figure is None:
        return ""
    if unit == "ns":
        return text.duration(figure)
    if unit == "bytes":
        return text.size(round(figure))
    return f"{figure:.2f} %" if unit == "%" else f"{figure:.4g}"


def value(check: Check) -> str:
    """How the candidate compares: "1.021", "0.30 points"."""
    return _figure(check.value, check.unit)


def interval(check: Check) -> str:
    """Its interval, open where no end is known: "1.012–1.031"."""
    if check.low is None and check.high is None:
        return "" if check.unit != "ratio" else "none yet"
    if check.low == check.high:
        return "exact"
    low, high = (_bare(end, check.unit) if end is not None else "…" for end in (check.low, check.high))
    return f"{low}{text.DASH}{high}" if check.unit == "ratio" else f"{low} to {high}"


def bound(check: Check) -> str:
    """Its bound: "≤ 1.050", "≤ 1.0001"; agreement is to be at least so high."""
    if check.bound is None:
        return ""
    fine = check.unit == "ratio" and round(check.bound, 3) != check.bound
    figure = f"{check.bound:.6g}" if fine else _figure(check.bound, check.unit)
    return ("≥ " if check.name == "agreement" else "≤ ") + figure


def _figure(figure: float | None, unit: str) -> str:
    if figure is None:
        return text.NOTHING
    words = {"ratio": "", "points": " points", "%": " %", "1": ""}[unit]
    return _bare(figure, unit) + words


def _bare(figure: float, unit: str) -> str:
    if unit == "ratio":
        return f"{figure:.3f}"
    if unit == "points":
        return text.points(figure)
    return f"{figure:.2f}" if unit == "%" else f"{figure:.3g}"


def names(found: Comparison) -> tuple[str, str]:
    """What base and candidate are called; with the beginning of their files' hashes where two files have one name."""
    base, candidate = found.base, found.candidate
    if base.name != candidate.name or base.sha256 == candidate.sha256:
        return base.name, candidate.name
    return f"{base.name} ({base.sha256[:8]})", f"{candidate.name} ({candidate.sha256[:8]})"


def headline(found: Comparison) -> str:
    """The outcome in one sentence."""
    base, candidate = names(found)
    same = (base, found.base.sha256) == (candidate, found.candidate.sha256)
    both = f"{candidate} against {'itself' if same else base}"
    bad = [check.name for check in found.checks if check.verdict == "regression"]
    if bad:
        return f"{both}: REGRESSION in {', '.join(bad)}"
    open_ones = [check.name for check in found.checks if check.verdict == "inconclusive"]
    if open_ones:
        return f"{both}: inconclusive in {', '.join(open_ones)}"
    return f"{both}: inconclusive, it was ended early" if found.failure else f"{both}: pass"


def how(found: Comparison) -> str:
    """How it was measured, in one sentence."""
    where = f"{found.host.get('cpu')}, {found.host.get('isa')}, load {_load(found.host)}"
    if found.method == "records":
        return (
            f"Two saved records of {where}; intervals of {100 * found.level:.0f} % from unpaired processes."
        )
    return (
        f"{text.plural(len(found.turns), 'turn')} in {text.wall(found.seconds)}, fresh processes each, blocks of "
        f"{found.calls} calls in random order; intervals of {100 * found.level:.0f} % that hold at every look. "
        f"{condition(found.condition)}; {where}."
    )


def condition(given: Mapping[str, object]) -> str:
    """What it was timed under."""
    asked = given.get("input")
    if not isinstance(asked, Mapping):
        return ""
    shape = "x".join(map(str, asked.get("shape", ())))
    threads = text.plural(int(str(given.get("threads", 1))), "thread")
    return f"{given.get('provider')}, {threads}, {asked.get('kind')} {shape} {asked.get('source')}"


def _load(host: Mapping[str, object]) -> str:
    load = host.get("load")
    return f"{load[0]:.1f}" if isinstance(load, Sequence) and load else "unknown"


def sign(verdict: str) -> str:
    """A mark for a verdict, nothing for what is not judged."""
    return _SIGNS.get(verdict, "")
