"""Bounds that somebody set and that nothing can be judged by: an error where more can be given, else inconclusive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolchain.compare.gates import Gates
from toolchain.compare.model import Check
from toolchain.errors import ToolchainError

# How the check of a bound is called, or how its name begins.
_CHECKS: Mapping[str, str] = {
    "latency": "latency", "typical": "typical latency", "cold_start": "cold start", "memory": "memory", "size": "size",
    "accuracy": "accuracy", "class_accuracy": "class ", "agreement": "agreement",
    "calibration": "calibration error", "difference": "largest difference",
}  # fmt: skip
_OF_ANSWERS = ("accuracy", "class_accuracy", "agreement", "calibration")


def is_set(gates: Gates, bound: str) -> bool:
    """Whether somebody set this bound, to something: a default may go unjudged with a note, this one may not."""
    return bound in gates.model_fields_set and getattr(gates, bound) not in (None, {})


def require_answers(gates: Gates, given: bool) -> None:
    """Raise ToolchainError when a bound needs answers and none are `given`, before anything is timed."""
    wanted = [bound for bound in _OF_ANSWERS if is_set(gates, bound)]
    if wanted and not given:
        raise ToolchainError(
            f"{', '.join(wanted)}: cannot be judged without answers; give --pictures (two models) or --answers, "
            f"or set it to null"
        )


def unjudged(gates: Gates, checks: Sequence[Check], reasons: Mapping[str, str]) -> list[Check]:
    """An inconclusive check for each bound that was set and has no check; `reasons`: why, by bound."""
    return [
        open_check(name.strip(), getattr(gates, bound), reasons.get(bound, "it could not be measured"))
        for bound, name in _CHECKS.items()
        if is_set(gates, bound) and not any(check.name.startswith(name) for check in checks)
    ]


def open_check(name: str, bound: object, reason: str) -> Check:
    """A check without a figure; the bound is in its note, in the words of gates.yaml."""
    return Check(name=name, verdict="inconclusive", value=None, unit="1", note=f"bound {bound}: {reason}")
