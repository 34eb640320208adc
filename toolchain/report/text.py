"""Numbers and names as people read them. Every form of the report says a figure with the same words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

MINUS = "\u2212"
DASH = "\u2013"
NOTHING = "\u2014"


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!$@])")  # of Markdown
_UNSHOWN = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")  # directions


def printable(value: Any) -> Any:
    """A name that any reader can show: control characters, directions and broken bytes are spelled out.

    File names are bytes; what is not UTF-8 arrives as lone surrogates, which no file format takes. Line
    ends and tabs stay.
    """
    return "".join(_shown(character) for character in value) if isinstance(value, str) else value


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not read
        return f"\\x{code - 0xDC00:02x}"
    hidden = (
        character in _UNSHOWN or unicodedata.category(character) in ("Cc", "Cs") or code & 0xFFFE == 0xFFFE
    )
    if not hidden or character in "\n\t":
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


Text = Annotated[str, BeforeValidator(printable)]


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction as per cent: 0.975 -> "97.5 %"."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def percent_range(ends: Sequence[float] | None, digits: int = 1) -> str:
    """Two fractions: (0.961, 0.985) -> "96.1–98.5"."""
    return "" if ends is None else f"{100 * ends[0]:.{digits}f}{DASH}{100 * ends[1]:.{digits}f}"


def points(value: float | None, digits: int = 2, plus: str = "") -> str:
    """Percentage points: -0.4 -> "−0.40"; `plus` stands before what is above nought after rounding."""
    if value is None:
        return NOTHING
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else plus if value > 0 else MINUS
    return sign + text


def points_range(ends: Sequence[float], digits: int = 2) -> str:
    """Two signed ends: (-0.2, 1.4) -> "−0.20 to 1.40"."""
    return f"{points(ends[0], digits)} to {points(ends[1], digits)}"


def times(ratio: float | None) -> str:
    """A speed-up: 2.214 -> "2.21×"."""
    return NOTHING if ratio is None else f"{ratio:.2f}\u00d7"


def duration(nanoseconds: float | None) -> str:
    """A latency with three significant digits: 2_140_000 -> "2.14 ms"."""
    if nanoseconds is None:
        return NOTHING
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{_three(nanoseconds / size)} {unit}"
    return f"{nanoseconds:.0f} ns"


def wall(seconds: float | None) -> str:
    """How long a person waited: 0.31 -> "0.3 s", 251 -> "4 min 11 s", 7500 -> "2 h 5 min"."""
    if seconds is None:
        return NOTHING
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: int | None) -> str:
    """Bytes in powers of ten: 9_130_000 -> "9.13 MB"."""
    if count is None:
        return NOTHING
    for unit, base in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= base:
            return f"{_three(count / base)} {unit}"
    return f"{count} B"


def amount(count: int | None) -> str:
    """A count of parameters or operations: 2_240_000 -> "2.24 M"."""
    if count is None:
        return NOTHING
    for unit, base in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= base:
            return f"{_three(count / base)} {unit}"
    return str(count)


def measured(value: float, unit: str) -> str:
    """A gate's figure: (0.4, "points") -> "0.40 points"; without unit, two significant digits."""
    shown = f"{value:.2g}" if unit == "1" else f"{value:.2f}"
    return shown.replace("-", MINUS) + ("" if unit == "1" else f" {unit}")


def whole(count: int) -> str:
    """A whole number in groups of three: 1797 -> "1,797"."""
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: (1, "file") -> "1 file"."""
    return f"{whole(count)} {noun}{'' if count == 1 else 'es' if noun.endswith('ss') else 's'}"


def _three(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"


def escape(value: str) -> str:
    """A name that Markdown shows as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))
